"""Catastrophic overfitting: training against one step may lose, within an epoch, all robustness to more steps.

Found and named by Wong et al. 2020 (arXiv 2001.03994, section 5.3), who stop early by a PGD accuracy too; the rule is
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smart_train.accuracy import wilson
from smart_train.attacks import Attack, attack_kind
from smart_train.data.images import ImageSet
from smart_train.training.history import Row, path_accuracies
from smart_train.training.selection import SELECTION_IMAGES, SELECTION_STEPS


@dataclass(frozen=True)
class Collapse:
    """An epoch in which a path's accuracy under PGD-10, on at most 1,000 validation images, fell by more than half.

    Attributes:
        epoch: in which it happened; nothing was trained after it.
        path: whose accuracy it is.
        before, after: the accuracy after the epoch before, and after this one.
    """

    epoch: int
    path: str
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"in epoch {self.epoch} the PGD-{SELECTION_STEPS} accuracy of path {self.path} fell from {self.before:.3f} "
            f"to {self.after:.3f}"
        )


def find_collapse(history: Sequence[Row], *, attack: Attack, data: ImageSet) -> Collapse | None:
    """Return the collapse in the last epoch of ``history``; None if there is none, or ``attack`` has more steps.

    An accuracy counts as lost only if it was clearly above chance: the lower end of its 95% interval above one in as
    many as ``data`` has classes.

    Args:
        history: one row an epoch, in order.
        attack: the one trained against.
        data: its validation split is what the history was measured on.
    """
    if not attack_kind(attack.name).one_step or len(history) < 2:
        return None
    first, last = (path_accuracies(row) for row in history[-2:])
    for path, (_, after) in last.items():
        before = first[path][1]
        if before is None or after is None:  # a path for clean images
            continue
        low, _ = wilson(before, min(len(data.validation), SELECTION_IMAGES))
        if low > 1 / len(data.class_names) and after < before / 2:
            return Collapse(len(history), path, before, after)
    return None


def record(stopped: Collapse | None) -> dict[str, Any]:
    """Return what a checkpoint's ``training`` says of it: nothing of a training that went on to its end."""
    return {} if stopped is None else {"stopped": asdict(stopped)}
