"""``ckpt.history.csv``: one line an epoch, the same on every run of the same training; and TensorBoard's event files.

Nothing that depends on the machine (speeds, times) is in the first, so two histories can be compared to the last digit.
It lies beside the checkpoint, which holds the same rows under ``training``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smart_common.errors import MissingExtraError
from smart_common.files import replacing
from smart_train.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

Row = dict[str, float]
"""One epoch: ``epoch`` (1 for the first), ``learning_rate`` at its end, the mean loss and the kept fraction of the
masked channels of each path, and each path's accuracy on the clean validation split and, where attacks are its
business, under attack on at most 1,000 images of it."""

_FIRST = ("epoch", "learning_rate")


def path_accuracies(row: Row) -> dict[str, tuple[float, float | None]]:
    """Return each path's accuracy on clean images, and under attack where the path is for attacked ones."""
    ending = "_path_clean_accuracy"
    names = [key.removesuffix(ending) for key in row if key.endswith(ending)]
    return {name: (row[f"{name}{ending}"], row.get(f"{name}_path_robust_accuracy")) for name in names}


def history_path(checkpoint: Path) -> Path:
    """Return where the history of the training that writes ``checkpoint`` lies."""
    return checkpoint.with_name(f"{checkpoint.stem}.history.csv")


def write_history(rows: Sequence[Row], path: Path) -> None:
    """Write ``rows``, which all have the keys of the first, as CSV with a header; floats to the last digit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def check_history(path: Path) -> None:
    """Raise ConfigError if ``path`` is there and is no history: it would be written over, whoever's it is.

    The history of an earlier training with this checkpoint may be: its checkpoint has the same rows.
    """
    if not path.exists():
        return
    wanted = ",".join(_FIRST).encode()
    is_ours = path.is_file()
    if is_ours:
        with path.open("rb") as file:
            is_ours = file.read(len(wanted)) == wanted
    if not is_ours:
        raise ConfigError(
            f"{path} is not the history of a training and would be overwritten; move it, or train into another folder "
            f"with -o"
        )


def tensorboard_loggers(folder: Path, *, resume: bool) -> list[Logger]:
    """Return what Fabric writes TensorBoard's events with; ``resume`` allows ``folder`` to have some already.

    Raises:
        ConfigError: if the folder has events of another training.
        MissingExtraError: if TensorBoard is not installed.
    """
    if not resume and any(folder.glob("events.out.tfevents*")):
        raise ConfigError(
            f"{folder} has TensorBoard events of another training, which would mix with this one's; name another folder"
        )
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger  # noqa: PLC0415  # slow

    try:
        import tensorboard  # noqa: F401, PLC0415  # Fabric would miss it only at the first figures
    except ImportError as error:
        raise MissingExtraError("--tensorboard needs TensorBoard; pip install 'smart-edge[tensorboard]'") from error
    return [TensorBoardLogger(root_dir=folder, name="", version="")]
