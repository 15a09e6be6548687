"""What smart-eval says of the models that it measured: one document for machines, one table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smart_common.robustness import UnderAttack, robustness_warnings
from smart_common.roles import default_role
from smart_eval.attacks.base import NamedAttack
from smart_eval.attacks.pgd import as_pgd
from smart_eval.attacks.table import CLEAN
from smart_eval.checks import Check
from smart_eval.corruptions import Corrupted, mean_record
from smart_eval.models import Facts
from smart_eval.records import Right
from smart_eval.threats import Threats
from smart_eval.tripwire.detection import TripwireFound
from smart_train.accuracy import Accuracy
from smart_train.data.images import Labels


@dataclass(frozen=True, kw_only=True)
class Measured(Facts):
    """One model with what was found.

    Attributes:
        eps: the radius of every attack, in pixel units.
        attacks: that were made.
        right: by path, by attack, ``clean`` included, which images were right, bool (N,).
        labels: of the images, int64 (N,).
        data: kind and digest of the data set.
        seed: of the attacks and of the choice of images.
        chunk: images that were attacked together; with the seed it determines all that is random.
        indices: of the test images that were chosen, None for all.
        threats: what attacks achieve that are not aimed at the path that runs, None where that was not asked for.
        corruptions: what it gets right under each corruption; None where nobody asked.
        calibration: by path, from `smart_eval.calibrated.measure_calibration`; None of a randomised network.
        checks: for hidden gradients; none where nobody asked.
        eps_curve: the accuracy over eps, from `smart_eval.checks.eps_curve`.
        tripwire: what that policy notices of its attackers; None where nobody asked.
    """

    eps: float
    attacks: Sequence[NamedAttack]
    right: Mapping[str, Mapping[str, Right]]
    labels: Labels
    data: Mapping[str, str]
    seed: int
    chunk: int
    indices: npt.NDArray[np.int64] | None
    threats: Threats | None = None
    calibration: Mapping[str, Any] | None = None
    corruptions: Sequence[Corrupted] | None = None
    checks: Sequence[Check] = ()
    eps_curve: Mapping[str, Any] | None = None
    tripwire: TripwireFound | None = None

    @property
    def names(self) -> list[str]:
        """Of what was made of the images: ``clean``, then the attacks."""
        return [CLEAN, *(attack.name for attack in self.attacks)]

    @property
    def suspect(self) -> bool:
        """Whether a check failed."""
        return any(check.passed is False for check in self.checks)

    @property
    def examples(self) -> int:
        """How many images."""
        return len(next(iter(self.right.values()))[CLEAN])

    def accuracy(self, path: str, attack: str) -> Accuracy:
        """Return the accuracy of a path under one attack, or ``clean``."""
        return Accuracy.of(self.right[path][attack])

    def worst(self, path: str) -> Accuracy:
        """Return the accuracy of a path where each image meets the worst of all attacks for it."""
        return Accuracy.of(self._withstands(path))

    @property
    def warnings(self) -> dict[str, tuple[str, ...]]:
        """Why not to rely on a path under attack, by path; nothing without attacks."""
        if not self.attacks:
            return {}
        found = {}
        for path in self.right:
            lowest = self.worst(path) if self.threats is None else Accuracy.of(self.threats.worst(path))
            role = self.roles.get(path) or default_role(path)
            found[path] = UnderAttack(role, lowest.value, lowest.interval)
        alone = len(self.attacks) == 1 and self.threats is None
        return robustness_warnings(found, attack=self.attacks[0].name if alone else "all that was tried")

    def _withstands(self, path: str) -> Right:
        found: Right = np.logical_and.reduce([*self.right[path].values()])
        return found

    def document(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "model": str(self.model),
            "kind": self.kind,
            "digest": self.digest,
            "precision": self.precision,
            "engine": self.engine,
            "method": self.method,
            "forwards_per_image": self.forwards,
            "cost": self.cost.record,
            "data": dict(self.data),
            "attacks": [{**attack.record(), "description": attack.description} for attack in self.attacks],
            "eps": self.eps,
            "norm": "Linf",
            "threat_model": self.threat_model,
            "randomised": self.randomised,
            "examples": self.examples,
            "example_indices": None if self.indices is None else self.indices.tolist(),
            "seed": self.seed,
            "chunk": self.chunk,
            "split": "test",
            "classes": [self._class(int(label)) for label in np.unique(self.labels)],
            "paths": {path: self._path(path) for path in self.right},
            "warnings": [sentence for sentences in self.warnings.values() for sentence in sentences],
            **({} if self.masks is None else {"masks": self.masks}),
            **({"mixes": {name: dict(mix) for name, mix in self.mixes.items()}} if self.mixes else {}),
            **({"calibration": dict(self.calibration)} if self.calibration else {}),
            **({} if self.threats is None else {"threats": self.threats.document()}),
            **({} if self.replay is None else {"replay": {path: one.record() for path, one in self.replay.items()}}),
            **self._corrupted(),
            **self._checked(),
            **({} if self.tripwire is None else {"tripwire": self.tripwire.record()}),
        }

    def _corrupted(self) -> dict[str, Any]:
        if self.corruptions is None:
            return {}
        return {
            "corruptions": [one.record() for one in self.corruptions],
            "corruptions_mean": mean_record(self.corruptions),
        }

    def _checked(self) -> dict[str, Any]:
        if not self.checks:
            return {}
        checks = [asdict(check) for check in self.checks]
        curve = {} if self.eps_curve is None else {"eps_curve": self.eps_curve}
        return {"suspect": self.suspect, "checks": checks, **curve}

    def _class(self, label: int) -> dict[str, Any]:
        own = self.labels == label
        return {
            "name": self.class_names[label],
            "label": label,
            "examples": int(own.sum()),
            "paths": {
                path: _clean_and_worst(Accuracy.of(right[CLEAN][own]), Accuracy.of(self._withstands(path)[own]))
                for path, right in self.right.items()
            },
        }

    def _path(self, path: str) -> dict[str, Any]:
        return {
            **_clean_and_worst(self.accuracy(path, CLEAN), self.worst(path)),
            "attacks": {attack.name: self.accuracy(path, attack.name).record for attack in self.attacks},
        }


def _clean_and_worst(clean: Accuracy, worst: Accuracy) -> dict[str, Any]:
    return {
        "clean_accuracy": clean.value,
        "clean_interval": list(clean.interval),
        "robust_accuracy": worst.value,
        "robust_interval": list(worst.interval),
    }


def document(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return all models for machines; of a single one its own keys stand at the top too, as before there were more."""
    models = [one.document() for one in measured]
    if len(measured) != 1:
        return {"models": models}
    (one,), (only,) = measured, models
    pgd = as_pgd(one.attacks[0]) if len(one.attacks) == 1 else None
    single = {}
    if pgd is not None:
        single["attack"] = {"name": "pgd", "eps": pgd.eps, "steps": pgd.attack.steps, "restarts": pgd.attack.restarts}
    return {
        "models": models,
        only["kind"]: only["model"],
        **single,
        **{key: only[key] for key in ("examples", "seed", "split", "paths")},
    }


def _ran(one: Measured) -> str:
    """Return a model with what computed its figures."""
    return f"{one.model} ({f'{one.precision} graphs, {one.engine}' if one.kind == 'bundle' else 'fp32 masked paths'})"


def table(one: Measured) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows of one model for people; of several `smart_eval.comparison.table` does.

    A path with ``(!)`` is not to be relied on under attack; `Measured.warnings` says why.
    """
    title = (
        f"{_ran(one)}: {one.examples} test images, {', '.join(one.names[1:]) or 'no attack'}, eps {one.eps:.4g}, seed "
        f"{one.seed}, 95% intervals"
    )
    worst = ["worst of all"] if len(one.names) > 2 else []
    rows = [
        [
            f"{path} (!)" if path in one.warnings else path,
            *(str(one.accuracy(path, name)) for name in one.names),
            *[str(one.worst(path))] * len(worst),
        ]
        for path in one.right
    ]
    return title, ["path", *one.names, *worst], rows


def replay_table(measured: Sequence[Measured]) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows of what bundles make of their source's samples."""
    columns = ["bundle", "path", "clean: source", "graph", "adversarial: source", "graph", "same class", "difference"]
    rows = [
        [
            f"{one.model} ({one.precision})",
            path,
            *(f"{who[kind].value:.3f}" for kind in ("clean", "adversarial") for who in (found.source, found.graph)),
            f"{found.same_class.value:.3f}",
            f"{found.max_rel_diff:.1e}",
        ]
        for one in measured
        for path, found in (one.replay or {}).items()
    ]
    return "the samples of the source, and adversarial ones made on its masked path", columns, rows
