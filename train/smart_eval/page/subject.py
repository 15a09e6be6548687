"""What the page is made of, read once from the document that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from smart_eval.page.charts import swatch
from smart_eval.page.html import Markup, name_of, tag
from smart_eval.page.included import Included, Speed
from smart_eval.page.pictures import Pictures

Model = Mapping[str, Any]
"""One of the document's models."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page says.

    Attributes:
        models: as `smart_eval.report.document` makes them, one at least.
        pictures: of each model, in the same order; None for one without.
        included: saved results of other commands.
        command: as the user typed it.
        environment: what it ran on and with, word by word.
    """

    models: Sequence[Model]
    pictures: Sequence[Pictures | None]
    included: Included
    command: str
    environment: Mapping[str, str]

    @property
    def several(self) -> bool:
        """Whether there is more than one model."""
        return len(self.models) > 1

    @property
    def paths(self) -> list[str]:
        """The names of all paths, each once: a path has the same colour everywhere."""
        return list(dict.fromkeys(path for model in self.models for path in model["paths"]))

    def shown(self, model: Model) -> Pictures | None:
        """Return the pictures of a model."""
        return next(shown for one, shown in zip(self.models, self.pictures, strict=True) if one is model)

    def colour(self, path: str) -> int:
        """Return which of the chart's colours a path has."""
        return self.paths.index(path)

    def path(self, name: str) -> Markup:
        """Return a path's name behind its colour, which is grey for a graph that is no path."""
        return tag("span", swatch(self.paths.index(name) if name in self.paths else None), name_of(name), class_="who")

    def key(self, paths: Iterable[str]) -> Markup:
        """Return which colour of a drawing stands for which path."""
        return tag("ul", *(tag("li", self.path(path)) for path in paths), class_="key")

    def name(self, model: Model) -> str:
        """Return a model's file name, or as much of its path as tells it from the others."""
        own = PurePath(model["model"])
        others = [PurePath(other["model"]) for other in self.models if other is not model]
        for parts in range(1, len(own.parts) + 1):
            short = own.parts[-parts:]
            if all(other.parts[-parts:] != short for other in others):
                return str(PurePath(*short))
        return str(own)

    def each(
        self, models: Iterable[Model], show: Callable[[Report, Model], Markup], *, folded: bool = False
    ) -> list[Markup]:
        """Return a block of each of ``models``, under its name where the report has several.

        Args:
            models: some of the report's.
            show: what a block holds.
            folded: of several, all but the first open on a click only, since what they hold is long.
        """
        if not self.several:
            return [show(self, model) for model in models]
        blocks = []
        for number, model in enumerate(models):
            heading, content = tag("h3", name_of(self.name(model))), show(self, model)
            if folded:
                blocks.append(tag("details", tag("summary", heading), content, open=number == 0, class_="model"))
            else:
                blocks.append(tag("div", heading, content, class_="model"))
        return blocks

    def under(self, heading: Markup | str) -> Markup:
        """Return a heading within a block of `each`: one level is left out where the model has none of its own."""
        return tag("h4" if self.several else "h3", heading, class_="minor")

    def told(self, sentence: Callable[[Model], str | None]) -> list[Markup]:
        """Return what ``sentence`` says of the models, each thing once, with the names where it is not of all."""
        found: dict[str, list[str]] = {}
        for model in self.models:
            words = sentence(model)
            if words is not None:
                found.setdefault(words, []).append(self.name(model))
        return [
            tag(
                "p",
                None if len(names) == len(self.models) else tag("b", name_of(", ".join(names)), ": "),
                words,
                class_="note",
            )
            for words, names in found.items()
        ]

    def speeds(self, model: Model) -> tuple[Mapping[str, Speed], bool]:
        """Return what was measured of a model's graphs, by name, and whether that it is this model's is assumed.

        A bundle is known by its digest, a checkpoint by that of the bundle that smart-export says it made of it. One
        checkpoint and one bundle, of which nothing says otherwise, are taken for each other. Of several bundles of one
        checkpoint the fp32 one counts, since accuracies are measured in fp32.
        """
        rows = [row for bench in self.included.benches for row in bench.rows if row.digest is not None]
        exports = self.included.exports
        own = {model["digest"], *(one.bundle_digest for one in exports if one.checkpoint_digest == model["digest"])}
        found = [row for row in rows if row.digest in own]
        assumed = False
        known = {one.bundle_digest for one in exports}
        if not found and not self.several and model["kind"] == "checkpoint" and len({row.digest for row in rows}) == 1:
            found = [row for row in rows if row.digest not in known and row.graph in (*model["paths"], "dense")]
            assumed = bool(found)
        best: dict[str, Speed] = {}
        for row in sorted(found, key=lambda row: row.precision not in {"fp32", None}):  # stable: the first given wins
            best.setdefault(row.graph, row)
        return best, assumed


def tried_more(model: Model) -> bool:
    """Return whether more was tried on each path than attacks on itself: what ``threats.worst`` counts."""
    return "worst" in model.get("threats", {})


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
