"""The dense control of a checkpoint: does it belong to it, and what did it measure?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smart_common.errors import SmartError
from smart_export.errors import ExportError
from smart_train import Checkpoint
from smart_train.training.control import control_path

_MAY_DIFFER = {"structure", "permute", "permutation", "best_epoch", "history", "versions"}  # of two training records


def find_control(
    given: Path | None,
    checkpoint: Checkpoint,
    *,
    file: Path,
    load: Callable[[Path], Checkpoint],
    note: Callable[[str], None],
) -> Mapping[str, Mapping[str, Any]] | None:
    """Return what the dense control measured, the ``given`` one or else that beside ``file``; None without one.

    Raises:
        ExportError: the given one is none of ``checkpoint``. Of what merely lies beside a ``note`` says that.
    """
    place = given or control_path(file)
    if given is None and not place.is_file():
        return None
    try:
        return control_metrics(load(place), checkpoint, file=place)
    except SmartError as error:
        if given is not None:
            raise
        note(f"note: the baseline has no accuracies: {error}")
        return None


def control_metrics(control: Checkpoint, checkpoint: Checkpoint, *, file: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return what was measured of each path of ``control``, a dense network trained as ``checkpoint`` was.

    Raises:
        ExportError: it is another network, was trained by another recipe, has masks, or its training has not ended.
    """

    def no_control(why: str) -> ExportError:
        return ExportError(
            f"{file} is not the dense control of this checkpoint: {why}; smart-train --dense-control trains it"
        )

    for what, ours, theirs in (
        ("network", (checkpoint.architecture, checkpoint.arguments), (control.architecture, control.arguments)),
        ("input shape", checkpoint.input_shape, control.input_shape),
        ("classes", checkpoint.class_names, control.class_names),
        ("paths", checkpoint.net.path_names, control.net.path_names),
    ):
        if ours != theirs:
            raise no_control(f"its {what} is another" if what != "classes" else "its classes are others")
    if control.net.structure.density != 1 or control.net.structure.pattern.weights is not None:
        raise no_control("it has masks")
    keys = sorted((checkpoint.training.keys() | control.training.keys()) - _MAY_DIFFER)
    changed = [key for key in keys if checkpoint.training.get(key) != control.training.get(key)]
    if changed:
        raise no_control(f"{', '.join(changed)} of the two trainings differ")
    if not all(control.metrics.get(path) for path in control.net.path_names):
        raise no_control("its training has not ended")
    return control.metrics
