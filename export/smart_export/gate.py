"""The accuracy gate: what a graph may lose against its masked path, on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smart_export.errors import ExportError, GateError
from smart_export.verify import Scores
from smart_train.accuracy import Z_95

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PairedAccuracy:
    """One accuracy of a masked path (``before``) and of its graph (``after``) on the same images.

    Attributes:
        before, after: fractions in [0, 1].
        drop: ``before - after``; negative where the graph is better.
        low, high: the 95% interval of the drop.
        examples: how many images.
    """

    before: float
    after: float
    drop: float
    low: float
    high: float
    examples: int


@dataclass(frozen=True)
class PathGate:
    """Both accuracies of one path; an image counts as robust if it is classified rightly before and under attack."""

    clean_accuracy: PairedAccuracy
    robust_accuracy: PairedAccuracy

    @property
    def drops(self) -> Mapping[str, PairedAccuracy]:
        """Both, by their names for people."""
        return {"clean accuracy": self.clean_accuracy, "robust accuracy": self.robust_accuracy}

    def record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def paired_accuracy(before: Right, after: Right) -> PairedAccuracy:
    """Compare which images are classified rightly before and after, bool (N,) each, N at least 1.

    The interval is the adjusted Wald one of Bonett and Price (2012, Journal of Educational and Behavioral Statistics
    37(4), 479-488): with one image added to each of the two kinds that differ, p = (lost + 1) / (N + 2)
    and q = (gained + 1) / (N + 2), it is p - q -+ 1.96 sqrt((p + q - (p - q)^2) / (N + 2)). Unlike the plain Wald
    interval it is no point where nothing differs.
    """
    count = len(before)
    p = (int(np.count_nonzero(before & ~after)) + 1) / (count + 2)
    q = (int(np.count_nonzero(~before & after)) + 1) / (count + 2)
    half = Z_95 * math.sqrt((p + q - (p - q) ** 2) / (count + 2))
    right_before, right_after = int(np.count_nonzero(before)), int(np.count_nonzero(after))
    return PairedAccuracy(
        before=right_before / count,
        after=right_after / count,
        drop=(right_before - right_after) / count,
        low=max(-1.0, p - q - half),
        high=min(1.0, p - q + half),
        examples=count,
    )


def path_gate(
    labels: npt.NDArray[np.int64], *, clean: tuple[Scores, Scores], adversarial: tuple[Scores, Scores]
) -> PathGate:
    """Compare a masked path and its graph.

    Args:
        labels: (N,).
        clean: scores (N, classes) of the masked path and of the graph for the images.
        adversarial: likewise for their adversarial versions, made on the masked path.
    """
    right = [scores.argmax(axis=1) == labels for scores in clean]
    robust = [was & (scores.argmax(axis=1) == labels) for was, scores in zip(right, adversarial, strict=True)]
    return PathGate(
        clean_accuracy=paired_accuracy(right[0], right[1]), robust_accuracy=paired_accuracy(robust[0], robust[1])
    )


def check_max_drop(max_drop: float) -> None:
    """Raise ExportError unless ``max_drop`` is a fraction in [0, 1]."""
    if not 0 <= max_drop <= 1:  # NaN neither
        raise ExportError(f"expected a drop of 0 to 100 points, got {100 * max_drop:g}; 1 is usual")


def require_gate(found: PathGate, *, name: str, max_drop: float) -> None:
    """Raise GateError if an accuracy of the graph ``name`` drops by more than ``max_drop``, a fraction.

    The drop itself decides, not its interval: on 128 images that reaches to 2.1 points where nothing differs at all, so
    its upper end would let nothing pass, and its lower end would let several points go.
    """
    what, worst = max(found.drops.items(), key=lambda item: item[1].drop)
    if worst.drop > max_drop + 1e-9:  # a drop of exactly so many images passes, however it rounds
        raise GateError(
            f"the {what} of the graph '{name}' is {100 * worst.drop:.2g} points below that of its masked path, "
            f"{100 * max_drop:g} are allowed ({worst.before:.3f} to {worst.after:.3f} on {worst.examples} images, 95% "
            f"interval of the drop {100 * worst.low:.1f} to {100 * worst.high:.1f} points); judge on more images with "
            "--data, calibrate on more with --calibration, take a higher precision, or allow more with --max-drop"
        )
