"""Draw the history of a training: losses, accuracies and how the masks close."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from smart_common.figures import PATH_COLOURS, drawing, style_panel
from smart_train.training.history import Row, path_accuracies

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_history(rows: Sequence[Row], path: Path, *, attack: str) -> None:
    """Draw a history of one or more ``rows`` into the file ``path``, which is replaced whole or not at all.

    ``attack`` is the short form of the one behind the robust accuracies. Raises as
    :func:`smart_common.figures.check_plot` does, and OSError if the file cannot be written.
    """
    with drawing(path, width=12.5, height=3.4) as figure:
        losses, accuracies, densities = figure.subplots(1, 3)
        _losses(losses, rows)
        _accuracies(accuracies, rows, attack=attack)
        _densities(densities, rows)
        for axis, title in ((losses, "Loss"), (accuracies, "Validation accuracy"), (densities, "Kept")):
            style_panel(axis, title, grid="y")
            axis.set_xlabel("epoch")
            axis.set_ylim(bottom=0)
            axis.legend(frameon=False, fontsize=9)


def _line(axis: Axes, rows: Sequence[Row], key: str, *, colour: str, label: str) -> None:
    epochs, values = [row["epoch"] for row in rows], [row[key] for row in rows]
    # A marker, since a history of one epoch has no line; see-through, since the paths' lines may coincide.
    axis.plot(epochs, values, color=colour, marker="o", markersize=3, label=label, alpha=0.75)


def _losses(axis: Axes, rows: Sequence[Row]) -> None:
    for key, colour in zip((key for key in rows[0] if key.endswith("_loss")), PATH_COLOURS, strict=False):
        name = key.removesuffix("_loss")
        _line(axis, rows, key, colour=colour, label=f"{name} path" if f"{name}_density" in rows[0] else name)


def _accuracies(axis: Axes, rows: Sequence[Row], *, attack: str) -> None:
    paths = path_accuracies(rows[0])
    others = cycle(PATH_COLOURS[len(paths) :] or PATH_COLOURS)
    for (path, (_, attacked)), colour in zip(paths.items(), cycle(PATH_COLOURS), strict=False):
        clean_colour = colour if attacked is None else next(others)
        _line(axis, rows, f"{path}_path_clean_accuracy", colour=clean_colour, label=f"{path} path, clean images")
        if attacked is not None:
            _line(axis, rows, f"{path}_path_robust_accuracy", colour=colour, label=f"{path} path, {attack}")
    axis.set_ylim(top=1)


def _densities(axis: Axes, rows: Sequence[Row]) -> None:
    for key, colour in zip((key for key in rows[0] if key.endswith("_density")), PATH_COLOURS, strict=False):
        _line(axis, rows, key, colour=colour, label=f"{key.removesuffix('_density')} path")
    axis.set_ylim(top=1.05)
