"""Draw a comparison: latency, speed-up and, where the bundle knows them, the accuracies that the paths trade."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smart_devices.errors import MissingExtraError
from smart_runtime.bench.report import Report, Row
from smart_runtime.errors import InputError
from smart_runtime.manifest import DENSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, told apart by people with any colour vision; the baseline stays grey.
_BASELINE = "#7a7a7a"
_PATHS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK = "#222222"
_FAINT = "#666666"


def check_plot(path: Path) -> None:
    """Check that `write_plot` can write to ``path``, before the time is spent on what it draws.

    Raises:
        InputError: Another suffix than .png, .svg or .pdf, or no such directory.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"expected a plot file ending in {', '.join(_SUFFIXES)}, got {path.name!r}; rename it")
    if not path.parent.is_dir():
        raise InputError(f"expected a directory for the plot, got {str(path.parent)!r}, which is none; make it first")
    _matplotlib()


def write_plot(report: Report, path: Path) -> None:
    """Draw ``report`` into the file ``path``, which is replaced whole or not at all.

    Raises:
        InputError: As `check_plot`.
        MissingExtraError: As `check_plot`.
        OSError: The file cannot be written.
    """
    check_plot(path)
    figure_module, canvas_module = _matplotlib()
    panels: list[Callable[[Axes, Report], None]] = [_draw_latency]
    if any(row.name == DENSE for row in report.rows):
        panels.append(_draw_speed_up)
    if _accuracies(report) is not None:
        panels.append(_draw_accuracy)

    # Figure and canvas directly: pyplot would pick a backend and keep the figure, for the whole process.
    figure = figure_module.Figure(
        figsize=(1.2 + 4.1 * len(panels), 2.1 + 0.66 * len(report.rows)), layout="constrained"
    )
    canvas_module.FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.03)
    figure.suptitle(
        f"{_plain(report.manifest.package_name)}: {report.engine}, batch {report.batch}, "
        f"{report.threads} thread{'s' if report.threads > 1 else ''}, {report.environment.cpu}",
        x=0.012,
        ha="left",
        fontsize=10,
        color=_FAINT,
    )
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for draw, axis in zip(panels, axes, strict=True):
        draw(axis, report)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(length=0, labelsize=10, labelcolor=_INK)

    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(beside, dpi=160, facecolor="white")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib.backends.backend_agg as canvas_module  # noqa: PLC0415  # optional, so imported at use
        import matplotlib.figure as figure_module  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "drawing a plot needs matplotlib, which is not installed; pip install 'smart-edge[plot]'"
        ) from error
    return figure_module, canvas_module


def _plain(text: str) -> str:
    """Keep matplotlib from reading a name as a formula, which fails if it is none."""
    return text.replace("$", r"\$")


def _colour(name: str, report: Report) -> str:
    return _BASELINE if name == DENSE else _PATHS[list(report.manifest.paths).index(name) % len(_PATHS)]


def _rows_down(axis: Axes, rows: list[Row]) -> None:
    """One line a row, the first at the top, with the names on the left and only vertical grid lines."""
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.set_ylim(len(rows) - 0.45, -0.55)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)


def _title(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK)


def _draw_latency(axis: Axes, report: Report) -> None:
    rows = list(report.rows)
    _rows_down(axis, rows)
    microseconds = max(row.p90_ms for row in rows) < 1
    scale, unit = (1000.0, "us") if microseconds else (1.0, "ms")
    rng = np.random.default_rng(0)  # of the scatter within a row, which means nothing
    for y, row in enumerate(rows):
        colour = _colour(row.name, report)
        medians = scale * np.array([np.median(block) for block in report.blocks[row.name]])
        median = scale * row.median_ms
        spread = rng.uniform(-0.17, 0.17, len(medians))
        axis.barh(y, median, height=0.5, color=colour, alpha=0.16, linewidth=0)
        axis.scatter(medians, y + spread, s=14, color=colour, alpha=0.45, linewidths=0)
        axis.plot([median, median], [y - 0.3, y + 0.3], color=colour, linewidth=3, solid_capstyle="round")
        axis.annotate(
            f"{median:.3g} {unit}",
            (median, y - 0.3),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=colour,
            fontsize=10,
            fontweight="bold",
        )
    # A block that the machine held up must not squeeze the others into a corner: the axis ends near the p90s.
    shown = max(max(np.percentile([np.median(b) for b in report.blocks[row.name]], 90), row.median_ms) for row in rows)
    axis.set_xlim(0, 1.18 * scale * shown)
    axis.set_xlabel(f"latency, {unit} (dots: median of a block)", color=_FAINT)
    _title(axis, "Latency")


def _draw_speed_up(axis: Axes, report: Report) -> None:
    rows = [row for row in report.rows if row.name != DENSE]
    _rows_down(axis, rows)
    for y, row in enumerate(rows):
        if row.speedup is None or row.speedup_low is None or row.speedup_high is None:
            continue
        colour = _colour(row.name, report)
        axis.barh(y, row.speedup, height=0.5, color=colour, label="_")
        axis.errorbar(
            row.speedup,
            y,
            xerr=[[row.speedup - row.speedup_low], [row.speedup_high - row.speedup]],
            color=_INK,
            capsize=4,
            linewidth=1.4,
        )
        axis.text(0.06, y, f"{row.speedup:.2f}x", ha="left", va="center", color="white", fontsize=11, fontweight="bold")
        if row.mac_ratio is not None:
            axis.plot([row.mac_ratio] * 2, [y - 0.36, y + 0.36], color=_INK, linewidth=1.6, linestyle=(0, (2, 1.5)))
            axis.annotate(
                f"MACs {row.mac_ratio:.2f}x",
                (row.mac_ratio, y - 0.36),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
                color=_FAINT,
            )
    axis.axvline(1, color="#b0b0b0", linewidth=1.2)
    axis.text(1, -0.53, " dense", ha="left", va="top", fontsize=9, color=_FAINT)
    longest = max(max(row.speedup_high or 0, row.mac_ratio or 0) for row in rows)
    axis.set_xlim(0, 1.18 * max(longest, 1.0))
    axis.set_xlabel("times as fast as dense (whisker: 95% interval)", color=_FAINT)
    _title(axis, "Speed-up")


def _draw_accuracy(axis: Axes, report: Report) -> None:
    accuracies = _accuracies(report) or {}
    for name, pair in accuracies.items():
        colour = _colour(name, report)
        axis.plot([0, 1], pair, color=colour, linewidth=2.4, marker="o", markersize=7)
        for x, side, align in ((0, -9, "right"), (1, 9, "left")):
            # Of labels that would touch, the higher moves up and the lower down.
            others = [other[x] for key, other in accuracies.items() if key != name]
            close = [other for other in others if abs(other - pair[x]) < 0.09]
            shift = 0 if not close else (6 if pair[x] >= max(close) else -6)
            axis.annotate(
                f"{name}  {pair[x]:.1%}" if x else f"{pair[x]:.1%}",
                (x, pair[x]),
                xytext=(side, shift),
                textcoords="offset points",
                ha=align,
                va="center",
                color=colour,
                fontsize=10,
                fontweight="bold",
            )
    first = next(iter(report.manifest.paths.values())).metrics or {}
    attack, eps = first.get("attack"), first.get("eps")
    under = (
        f"under {_plain(attack)}, eps {eps:.3g}"
        if isinstance(attack, str) and isinstance(eps, int | float)
        else "attacked"
    )
    axis.set_xticks([0, 1], ["clean images", under])
    axis.set_xlim(-0.34, 1.72)
    axis.set_ylim(-0.04, 1.1)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axis.spines["left"].set_visible(False)
    axis.set_axisbelow(True)
    _title(axis, "Accuracy")


def _accuracies(report: Report) -> dict[str, tuple[float, float]] | None:
    """Return each path's accuracy on clean and on attacked images; None unless all paths have both."""
    result = {}
    for name, graph in report.manifest.paths.items():
        metrics = graph.metrics or {}
        clean, robust = metrics.get("clean_accuracy"), metrics.get("robust_accuracy")
        if not isinstance(clean, int | float) or not isinstance(robust, int | float):
            return None
        result[name] = (float(clean), float(robust))
    return result
