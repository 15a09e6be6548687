"""What every plot of ours shares: colours, the look of a panel, the check before the work, how a file is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from smart_common.errors import MissingExtraError, OutputError
from smart_common.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by people with any colour vision; the baseline stays grey.
BASELINE_COLOUR = "#7a7a7a"
PATH_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
FAINT = "#666666"

_CREATOR = "smart-edge, a plot"  # in the file, so that it is known again
_MAX_BYTES = 2**24  # ours have some hundred kilobytes
_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Check that `drawing` can write to ``path``, before the time is spent on what it draws.

    Raises:
        OutputError: Another suffix than .png, .svg or .pdf, a directory of that name, or no directory to write it into.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"expected a plot file ending in {', '.join(_SUFFIXES)}, got {path.name!r}; rename it")
    if not path.parent.is_dir():
        raise OutputError(f"no directory for the plot at {path.parent}; make it first")
    if path.is_dir():
        raise OutputError(f"the plot cannot be written over the directory {path}; name a file in it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the plot may not be written into the directory {path.parent}; name another one")
    try:
        import matplotlib.figure  # noqa: F401, PLC0415  # optional, so imported at use
    except ImportError as error:
        raise MissingExtraError(
            "drawing a plot needs matplotlib, which is not installed; pip install 'smart-edge[plot]'"
        ) from error


def is_plot(path: Path) -> bool:
    """Whether `drawing` wrote the file ``path``; raises OSError if the system cannot read it."""
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES)
    return content.startswith((b"\x89PNG", b"<?xml", b"%PDF")) and _CREATOR.encode() in content


@contextmanager
def drawing(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure in inches to the block, then write it into ``path``, replaced whole or not at all.

    It looks as matplotlib's own defaults say, whatever the user's or a planted matplotlibrc asks for: to have text set
    by a run of TeX, for one. Raises as `check_plot`, and OSError.
    """
    check_plot(path)
    import matplotlib as mpl  # noqa: PLC0415  # optional, so imported at use
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    with mpl.rc_context():  # which puts the caller's own settings back
        mpl.rcdefaults()
        # Figure and canvas directly: pyplot would pick a backend and keep the figure, for the whole process.
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03))
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as file:
            kind = path.suffix.lower().removeprefix(".")
            figure.savefig(file, format=kind, dpi=160, facecolor="white", metadata={"Creator": _CREATOR})


def style_panel(axis: Axes, title: str, *, grid: Literal["x", "y"]) -> None:
    """Give a panel its title, a faint grid behind what is drawn, and no frame at the top and on the right."""
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axis.grid(axis=grid, color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
