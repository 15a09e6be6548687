"""Draw a comparison: latency, speed-up and, where the bundle knows them, the accuracies that the paths trade."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smart_common.figures import BASELINE_COLOUR, FAINT, INK, PATH_COLOURS, drawing, style_panel
from smart_common.names import printable
from smart_runtime.bench.report import Report
from smart_runtime.bundle.accuracies import Accuracies, deployed
from smart_runtime.bundle.manifest import DENSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LETTERS = 24  # a bundle's name is cut to so many
_LETTER_INCHES = 0.1  # of the names in bold
_LINE_INCHES = 0.3  # a label's height times the accuracies that fill a figure's height (1.2 or so, with the margins)


def write_plot(report: Report, path: Path) -> None:
    """Draw ``report`` into the file ``path``, which is replaced whole or not at all.

    Raises:
        OutputError: As `smart_common.figures.check_plot`.
        MissingExtraError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    panels: list[Callable[[Axes, Report], None]] = [_draw_latency]
    if report.reference is not None and len(report.rows) > 1:
        panels.append(_draw_speed_up)
    if _accuracies(report) is not None:
        panels.append(_draw_accuracy)

    with drawing(path, width=1.2 + _panel_inches(report) * len(panels), height=_height_inches(report)) as figure:
        names = ", ".join(dict.fromkeys(bundle.manifest.package_name for bundle in report.bundles.values()))
        figure.suptitle(
            f"{_plain(names)}: {report.engine}, batch {report.batch}, "
            f"{report.threads} thread{'s' if report.threads > 1 else ''}, {report.environment.cpu}",
            x=0.012,
            ha="left",
            fontsize=10,
            color=FAINT,
        )
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for draw, axis in zip(panels, axes, strict=True):
            draw(axis, report)
            axis.spines["left"].set_visible(False)
            axis.tick_params(length=0, labelsize=10, labelcolor=INK)


def _plain(text: str) -> str:
    """Keep matplotlib from reading a name as a formula, which fails if it is none, or is no text at all."""
    return "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")


def _panel_inches(report: Report) -> float:
    """Return the width of one panel: long names take room beside each."""
    return 4.1 + _LETTER_INCHES * max(0, _letters(report) - len("robust"))


def _letters(report: Report) -> int:
    return max(len(label) for label in _labels(report))


def _height_inches(report: Report) -> float:
    return 2.1 + 0.66 * len(report.rows)


def _labels(report: Report) -> list[str]:
    """Return a name for every row, fit for a plot: of several bundles the directory's own name, if that tells them."""
    short = {path: Path(os.path.abspath(path)).name for path in report.bundles}  # noqa: PTH100  # "." has no name
    if len(set(short.values())) != len(short):
        short = {path: path for path in report.bundles}
    words = {path: name if len(name) <= _LETTERS else f"...{name[3 - _LETTERS :]}" for path, name in short.items()}
    if len(set(words.values())) != len(words):  # they differ only where they were cut
        words = {path: f"bundle {number}" for number, path in enumerate(report.bundles, start=1)}
    return [_plain(report.label(row, bundle=words.get(row.bundle or ""))) for row in report.rows]


def _colours(report: Report) -> list[str]:
    """Return a colour for every row: grey for what is compared against, one for each path of each bundle."""
    colours = itertools.cycle(PATH_COLOURS)
    return [BASELINE_COLOUR if row.name == DENSE or row.bundle is None else next(colours) for row in report.rows]


def _rows_down(axis: Axes, labels: Sequence[str]) -> None:
    """One line a row, the first at the top, with the names on the left."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.45, -0.55)


def _label(
    axis: Axes, text: str, at: tuple[float, float], *, colour: str, offset: tuple[float, float], **look: Any
) -> None:
    """Write ``text`` so many points beside ``at``, above it unless ``look`` says otherwise."""
    usual: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 10, "fontweight": "bold"}
    axis.annotate(text, at, xytext=offset, textcoords="offset points", color=colour, **(usual | look))


def _draw_latency(axis: Axes, report: Report) -> None:
    rows = report.rows
    _rows_down(axis, _labels(report))
    microseconds = max(row.p90_ms for row in rows) < 1
    scale, unit = (1000.0, "us") if microseconds else (1.0, "ms")
    rng = np.random.default_rng(0)  # of the scatter within a row, which means nothing
    for y, (row, colour) in enumerate(zip(rows, _colours(report), strict=True)):
        medians = scale * np.array(row.block_medians_ms)
        median = scale * row.median_ms
        spread = rng.uniform(-0.17, 0.17, len(medians))
        axis.barh(y, median, height=0.5, color=colour, alpha=0.16, linewidth=0)
        axis.scatter(medians, y + spread, s=14, color=colour, alpha=0.45, linewidths=0)
        axis.plot([median, median], [y - 0.3, y + 0.3], color=colour, linewidth=3, solid_capstyle="round")
        _label(axis, f"{median:.3g} {unit}", (median, y - 0.3), colour=colour, offset=(0, 2))
    # A block that the machine held up must not squeeze the others into a corner: the axis ends near the p90s.
    shown = max(max(float(np.percentile(row.block_medians_ms, 90)), row.median_ms) for row in rows)
    axis.set_xlim(0, 1.18 * scale * shown)
    axis.set_xlabel(f"latency, {unit} (dots: median of a block)", color=FAINT)
    style_panel(axis, "Latency", grid="x")


def _draw_speed_up(axis: Axes, report: Report) -> None:
    labels, colours = _labels(report), _colours(report)
    compared = [i for i in range(len(labels)) if i != report.reference]
    rows = [report.rows[i] for i in compared]
    against = labels[report.reference or 0]
    _rows_down(axis, [labels[i] for i in compared])
    for y, (row, colour) in enumerate(zip(rows, (colours[i] for i in compared), strict=True)):
        if row.speedup is None or row.speedup_low is None or row.speedup_high is None:
            continue
        axis.barh(y, row.speedup, height=0.5, color=colour, label="_")
        axis.errorbar(
            row.speedup,
            y,
            xerr=[[row.speedup - row.speedup_low], [row.speedup_high - row.speedup]],
            color=INK,
            capsize=4,
            linewidth=1.4,
        )
        axis.text(0.06, y, f"{row.speedup:.2f}x", ha="left", va="center", color="white", fontsize=11, fontweight="bold")
        if row.mac_ratio is not None:
            axis.plot([row.mac_ratio] * 2, [y - 0.36, y + 0.36], color=INK, linewidth=1.6, linestyle=(0, (2, 1.5)))
            at = (row.mac_ratio, y - 0.36)
            _label(axis, f"MACs {row.mac_ratio:.2f}x", at, colour=FAINT, offset=(0, 2), fontsize=9, fontweight="normal")
    axis.axvline(1, color="#b0b0b0", linewidth=1.2)
    axis.text(1, -0.53, f" {against}", ha="left", va="top", fontsize=9, color=FAINT)
    longest = max(max(row.speedup_high or 0, row.mac_ratio or 0) for row in rows)
    axis.set_xlim(0, 1.18 * max(longest, 1.0))
    axis.set_xlabel(f"times as fast as {against} (whisker: 95% interval)", color=FAINT)
    style_panel(axis, "Speed-up", grid="x")


def _draw_accuracy(axis: Axes, report: Report) -> None:
    lines = _accuracies(report) or {}
    labels, colours = _labels(report), _colours(report)
    pairs = {row: pair for row, (_, pair) in lines.items()}
    for row, pair in pairs.items():
        axis.plot([0, 1], pair, color=colours[row], linewidth=2.4, marker="o", markersize=7)
    # On the left the values alone, each once; on the right every path's name too.
    left = {f"{pair[0]:.1%}": (pair[0], colours[row]) for row, pair in pairs.items()}
    right = {f"{labels[row]}  {pair[1]:.1%}": (pair[1], colours[row]) for row, pair in pairs.items()}
    line = _LINE_INCHES / _height_inches(report)
    highest = 1.0
    for x, side, align, texts in ((0, -9, "right", left), (1, 9, "left", right)):
        heights = _apart([value for value, _ in texts.values()], line)
        highest = max(highest, *heights)
        for height, (text, (_, colour)) in zip(heights, texts.items(), strict=True):
            _label(axis, text, (x, height), colour=colour, offset=(side, 0), ha=align, va="center")
    shown = [found for found, _ in lines.values()]
    first = shown[0]
    known = first.attack is not None and first.eps is not None
    under = f"under {_plain(first.attack or '')}, eps {first.eps:.3g}" if known else "attacked"
    axis.set_xticks([0, 1], ["clean images", under])
    # One bundle may be fp32 and another int8: each kind of figure is named.
    kinds = dict.fromkeys(f"{one.what}; by {one.by} on {one.where}" for one in shown)
    axis.set_xlabel(_plain("\n".join(f"of the {kind}" for kind in kinds)), color=FAINT, fontsize=8)
    beside = _LETTER_INCHES * (_letters(report) + len("  100.0%"))  # names and figures, right of the second picture
    axis.set_xlim(-0.34, 1 + 1.34 * beside / (_panel_inches(report) - beside))
    axis.set_ylim(-0.04, highest + 0.1)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    style_panel(axis, "Accuracy", grid="y")


def _apart(values: Sequence[float], line: float) -> list[float]:
    """Return where to write labels, ``line`` high, of ``values``: there, or further up so that none touches another."""
    result, lowest = [0.0] * len(values), -math.inf
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        result[i] = lowest = max(values[i], lowest + line)
    return result


def _accuracies(report: Report) -> dict[int, tuple[Accuracies, tuple[float, float]]] | None:
    """Return what stands for each path's graph, with both accuracies, by its row; None unless all paths have both."""
    result = {}
    for i, row in enumerate(report.rows):
        if row.bundle is None or row.name == DENSE:
            continue
        found = deployed(report.bundles[row.bundle].manifest, row.name)
        if found is None or found.clean_accuracy is None or found.robust_accuracy is None:
            return None
        result[i] = (found, (found.clean_accuracy, found.robust_accuracy))
    return result
