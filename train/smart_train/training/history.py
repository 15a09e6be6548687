"""``ckpt.history.csv``: one line an epoch, the same on every run of the same training.

Nothing that depends on the machine is in it (speeds, times), so two histories can be compared to the last digit. It
lies beside the checkpoint, which holds the same rows under ``training``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from smart_common.files import replacing
from smart_train.errors import ConfigError

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
