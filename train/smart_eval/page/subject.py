"""What the page is made of, read once from the document that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from smart_eval.comparison import Comparison, Row
from smart_eval.page.figures import radius
from smart_eval.page.included import Bench, Included, Speed, best_of
from smart_eval.page.pictures import Pictures

Model = Mapping[str, Any]
"""One of the document's models."""


_MOST_NAMES = 3  # in the heading
_COLOURS = 4
_THREATS = {
    "transfer": "Made on a path",
    "unknown_path": "On the mean loss",
    "worst": "Worst of all",
    "chosen_path": "The attacker's choice",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the most robust path gains under attack and loses on clean images, as fractions, against the most accurate.

    ``slower`` is how many times as long it takes, None where that was not measured.
    """

    accurate: str
    robust: str
    gained: float
    lost: float
    slower: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page says.

    Attributes:
        models: as `smart_eval.report.document` makes them, one at least.
        pictures: of each model, in the same order; None for one without.
        included: saved results of other commands.
        command: as the user typed it.
        environment: what it ran on and with, word by word.
        comparison: a row for each path of several subjects, those of saved results too; None for one alone.
    """

    models: Sequence[Model]
    pictures: Sequence[Pictures | None]
    included: Included
    command: str
    environment: Mapping[str, str]
    comparison: Comparison | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than one model."""
        return len(self.models) > 1

    @property
    def paths(self) -> list[str]:
        """The names of all paths, each once: a path has the same colour everywhere."""
        compared = [] if self.comparison is None else [row.path for row in self.comparison.rows]
        return list(dict.fromkeys([*(path for model in self.models for path in model["paths"]), *compared]))

    @property
    def attacked(self) -> bool:
        """Whether any model was attacked."""
        return bool(self.attack_names)

    @property
    def attack_names(self) -> list[str]:
        """The attacks of all models, each once."""
        compared = [] if self.comparison is None else self.comparison.attack_names
        return list(dict.fromkeys([*(one["name"] for model in self.models for one in model["attacks"]), *compared]))

    @property
    def attack_descriptions(self) -> Iterable[tuple[str, str]]:
        """Each attack in words, with its radius."""
        return dict.fromkeys(
            (one["name"], f"{one['description']}; within eps {radius(one['eps'])} of each pixel")
            for model in self.models
            for one in model["attacks"]
        )

    @property
    def radii(self) -> list[float]:
        """The radii of all attacks."""
        compared = [] if self.comparison is None else [row.eps for row in self.comparison.rows if row.attacks]
        return sorted({*(model["eps"] for model in self.models if model["attacks"]), *compared})

    @property
    def seeds(self) -> list[int]:
        """The seeds of all models."""
        compared = [] if self.comparison is None else [row.seed for row in self.comparison.rows]
        return sorted({*(model["seed"] for model in self.models), *compared})

    @property
    def examples(self) -> list[int]:
        """On how many test images models were measured."""
        compared = [] if self.comparison is None else [row.examples for row in self.comparison.rows]
        return sorted({*(model["examples"] for model in self.models), *compared})

    @property
    def suspicious(self) -> bool:
        """Whether a check of any path failed."""
        return any(suspect(model, path) for model in self.models for path in model["paths"])

    @property
    def more_tried(self) -> bool:
        """Whether more was tried on some path than attacks on itself."""
        return any(map(tried_more, self.models))

    @property
    def attackers_differ(self) -> bool:
        """Whether one model's attacker may do what another's may not."""
        attackers = {
            (model["threat_model"], tried_more(model) or len(model["paths"]) == 1)
            for model in self.models
            if model["attacks"]
        }
        return len(attackers) > 1

    @property
    def threat_models(self) -> Iterable[tuple[str, str]]:
        """What attackers may do who do not aim at the path that runs, each once."""
        return dict.fromkeys(
            (kind, model["threats"][key]["threat_model"])
            for key, kind in _THREATS.items()
            for model in self.having("threats")
            if key in model["threats"]
        )

    @property
    def title_names(self) -> list[str]:
        """The names of the models, or their number where they are too many for a heading."""
        names = [self.name(model) for model in self.models]
        if self.comparison is not None:
            names = list(dict.fromkeys(map(self.short, self.comparison.rows)))
        return [f"{len(names)} models"] if len(names) > _MOST_NAMES else names

    def having(self, key: str) -> list[Model]:
        """Return the models of which the document has ``key``, and something in it."""
        return [model for model in self.models if model.get(key)]

    @property
    def pictured(self) -> list[Model]:
        """The models that have pictures."""
        return [model for model in self.models if self.shown(model) is not None]

    def shown(self, model: Model) -> Pictures | None:
        """Return the pictures of a model."""
        return next(shown for one, shown in zip(self.models, self.pictures, strict=True) if one is model)

    def colour(self, path: str) -> str:
        """Return the style's class of a path's colour; there are four, then they come again."""
        return f"c{self.paths.index(path) % _COLOURS}"

    def name(self, model: Model) -> str:
        """Return a model's file name, or as much of its path as tells it from the others."""
        return _short(model["model"], [other["model"] for other in self.models if other is not model])

    def short(self, row: Row) -> str:
        """Return the name of a compared subject, as short as `name`."""
        assert self.comparison is not None
        return _short(row.subject, [name for name, _ in self.comparison.subjects if name != row.subject])

    def measured_beside(self, bench: Bench) -> list[Model]:
        """Return the models whose accuracies stand beside the latencies of ``bench``, each once."""
        owners = [self.owners[row][0] for row in bench.rows if row in self.owners]
        return [model for model in self.models if any(model is owner for owner in owners)]

    def ran(self, model: Model) -> str:
        """Return what computed a model's figures, in words."""
        if model["kind"] == "bundle":
            return f"{model['precision']} graphs ({model['engine']})"
        drawn = ", random in each call, attacked on the mean of many" if model.get("randomised") else ""
        return f"fp32 masked paths (torch{drawn})"

    def told(self, sentence: Callable[[Model], str]) -> list[tuple[str | None, str]]:
        """Return what ``sentence`` says of the models, each thing once, with the names where it is not of all."""
        found: dict[str, list[str]] = {}
        for model in self.models:
            words = sentence(model)
            if words:
                found.setdefault(words, []).append(self.name(model))
        everyone = len(self.models)
        return [(None if len(names) == everyone else ", ".join(names), words) for words, names in found.items()]

    def choice(self, model: Model) -> Choice | None:
        """Return what the most robust path gains and costs against the most accurate one; None of one path."""
        paths = model["paths"]
        if len(paths) < 2 or not model["attacks"]:
            return None
        clean = {path: found["clean_accuracy"] for path, found in paths.items()}
        attacked = {path: under_attack(model, path)[0] for path in paths}
        accurate, robust = max(clean, key=lambda path: clean[path]), max(attacked, key=lambda path: attacked[path])
        speeds, _ = self.speeds(model)
        timed = accurate in speeds and robust in speeds
        return Choice(
            accurate=accurate,
            robust=robust,
            gained=attacked[robust] - attacked[accurate],
            lost=clean[accurate] - clean[robust],
            slower=speeds[robust].median_ms / speeds[accurate].median_ms if timed else None,
        )

    def precisions(self, model: Model) -> tuple[list[str], bool]:
        """Return those of the graphs whose speeds stand for a model's paths, and whether they are only assumed to."""
        speeds, assumed = self.speeds(model)
        return sorted(
            {speed.precision or "unknown" for path, speed in speeds.items() if path in model["paths"]}
        ), assumed

    @property
    def owners(self) -> dict[Speed, tuple[Model, str]]:
        """Of each speed that stands for a path, the model and the path; a bundle has its own before its checkpoint."""
        return {
            row: (model, path)
            for model in sorted(self.models, key=lambda model: model["kind"] == "bundle")
            for path, row in self.speeds(model)[0].items()
            if path in model["paths"]
        }

    def speeds(self, model: Model) -> tuple[Mapping[str, Speed], bool]:
        """Return what was measured of a model's graphs, by name, and whether that it is this model's is assumed.

        A bundle is known by its digest, a checkpoint by that of the bundle that smart-export says it made of it. One
        checkpoint and one bundle, of which nothing says otherwise, are taken for each other.
        """
        found = self.included.speeds_of(model["digest"])
        if found or self.several or model["kind"] != "checkpoint":
            return found, False
        rows = [row for bench in self.included.benches for row in bench.rows if row.digest is not None]
        known = {one.bundle_digest for one in self.included.exports}
        if len({row.digest for row in rows}) == 1:
            found = best_of(
                [row for row in rows if row.digest not in known and row.graph in (*model["paths"], "dense")]
            )
        return found, bool(found)


def _short(name: str, others: Iterable[str]) -> str:
    own, paths = PurePath(name), [PurePath(other) for other in others]
    for parts in range(1, len(own.parts) + 1):
        short = own.parts[-parts:]
        if all(other.parts[-parts:] != short for other in paths):
            return str(PurePath(*short))
    return str(own)


def tried_more(model: Model) -> bool:
    """Return whether more was tried on each path than attacks on itself: what ``threats.worst`` counts."""
    return "worst" in model.get("threats", {})


def suspect(model: Model, path: str) -> bool:
    """Return whether a check of this path failed, so that its figures under attack may be too high."""
    return any(check["passed"] is False and check["path"] == path for check in model.get("checks", ()))


def under_attack(model: Model, path: str) -> tuple[float, Sequence[float]]:
    """Return the accuracy under attack that the page puts forward for a path, and its interval.

    Who takes away one figure must get the lowest: what withstands all that was tried on the path, where more was tried
    than attacks on itself. Without any attack it is the accuracy on clean images.
    """
    if tried_more(model):
        worst = model["threats"]["worst"]["paths"][path]
        return worst["accuracy"], worst["interval"]
    found = model["paths"][path]
    return found["robust_accuracy"], found["robust_interval"]
