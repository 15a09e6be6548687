"""What a training tells of itself: after each epoch, and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smart_common.units import duration
from smart_train.accuracy import PathAccuracy
from smart_train.training.collapse import Collapse
from smart_train.training.history import Row, path_accuracies


@dataclass(frozen=True)
class TrainResult:
    """What a finished training gives.

    Attributes:
        checkpoint: the file of the best epoch.
        seconds: of training and validation, over all resumed parts.
        images_per_second: training images, validation not counted.
        best_epoch: 1 for the first.
        accuracy: per path, on the test split under PGD-20.
        stopped: the collapse that ended it; None if it went on to the last epoch.
    """

    checkpoint: Path
    seconds: float
    images_per_second: float
    best_epoch: int
    accuracy: dict[str, PathAccuracy]
    stopped: Collapse | None = None


@dataclass(frozen=True)
class EpochReport:
    """How an epoch went.

    Attributes:
        row: its line of the history.
        epochs: of the whole training.
        best: whether it is the best so far, and the checkpoint now holds it.
        images_per_second: training images, validation not counted.
        seconds_left: an estimate, from the epochs of this process, for those to come and the report.
    """

    row: Row
    epochs: int
    best: bool
    images_per_second: float
    seconds_left: float

    def describe(self, *, attack: str) -> str:
        """Return it in a line; ``attack`` is the label of the one that chose by validation images."""
        row = self.row
        losses = ", ".join(f"{key.removesuffix('_loss')} {row[key]:.3f}" for key in row if key.endswith("_loss"))
        validation = ", ".join(
            f"{path} path {clean:.3f}" + ("" if robust is None else f", {attack} {robust:.3f}")
            for path, (clean, robust) in path_accuracies(row).items()
        )
        return (
            f"epoch {row['epoch']}/{self.epochs}  loss: {losses}  validation: {validation}  "
            f"{self.images_per_second:.0f} images/s  {duration(self.seconds_left)} left"
            f"{'  best so far' if self.best else ''}"
        )
