"""The page's drawings as SVG, made of figures by pure functions; colours and fonts are the style sheet's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smart_eval.page.axes import Axis, axis
from smart_eval.page.figures import percent
from smart_eval.page.html import Markup, join, tag

COLOURS = 4
_WIDTH, _HEIGHT = 360, 270  # in units; 12 of them are a line of text, so it can be read at a phone's width
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 44
_LETTER = 6.4  # a digit's width at the charts' font size, for where labels fit


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mark of the trade-off: fractions with their intervals.

    Attributes:
        x: robust accuracy.
        y: accuracy on clean images.
        x_interval: of x.
        y_interval: of y.
        size: what the mark's area stands for, None where it is not known.
        label: a few characters to stand beside it.
        title: all of it in words.
        colour: which of the `COLOURS`.
        hollow: not to be trusted.
    """

    x: float
    y: float
    x_interval: Sequence[float]
    y_interval: Sequence[float]
    size: float | None
    label: str
    title: str
    colour: int
    hollow: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through (x, fraction), each with its interval."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[Sequence[float]]
    colour: int


def swatch(index: int | None) -> Markup:
    """Return a dot of one colour, grey for None; what it stands for is written beside it."""
    return tag("span", class_="swatch" if index is None else f"swatch {colour(index)}", aria_hidden="true")


def colour(index: int) -> str:
    """Return the style's class of one colour; there are `COLOURS`, then they come again."""
    return f"c{index % COLOURS}"


def _drawing(*children: object, label: str, height: float = _HEIGHT) -> Markup:
    return tag("svg", *children, class_="chart", viewBox=f"0 0 {_WIDTH} {height:g}", role="img", aria_label=label)


def _frame(x: Axis, y: Axis, *, x_title: str, y_title: str, x_percent: bool) -> Markup:
    """Return grid, numbers and titles; y is a fraction, x is one where ``x_percent`` says so."""
    parts: list[Markup] = []
    for value in y.ticks:
        parts.append(tag("path", d=f"M{x.start:g} {y.at(value):g}H{x.end:g}", class_="grid"))
        parts.append(tag("text", f"{100 * value:g}", x=x.start - 6, y=y.at(value) + 4, class_="tick end"))
    for value in x.ticks:
        shown = f"{100 * value:g}" if x_percent else f"{value:g}"
        parts.append(tag("path", d=f"M{x.at(value):g} {y.start:g}v4", class_="axis"))
        parts.append(tag("text", shown, x=x.at(value), y=y.start + 17, class_="tick middle"))
    parts.append(tag("path", d=f"M{x.start:g} {y.start:g}H{x.end:g}", class_="axis"))
    middle = (y.start + y.end) / 2
    parts.append(tag("text", x_title, x=(x.start + x.end) / 2, y=y.start + 36, class_="title middle"))
    parts.append(tag("text", y_title, x=12, y=middle, class_="title middle", transform=f"rotate(-90 12 {middle:g})"))
    return join(*parts)


def scatter(points: Sequence[Point], *, x_title: str, y_title: str, label: str) -> Markup:
    """Return marks with their intervals; an area in proportion to ``size`` where that is known."""
    x = axis([end for point in points for end in point.x_interval], start=_LEFT, end=_WIDTH - _RIGHT - 10, top=1)
    y = axis([end for point in points for end in point.y_interval], start=_HEIGHT - _BOTTOM, end=_TOP, top=1)
    largest = max((point.size for point in points if point.size is not None), default=1.0)
    marks: list[Markup] = []
    taken: list[_Box] = []
    for point in points:
        ends = [x.at(end) for end in point.x_interval], [y.at(end) for end in point.y_interval]
        taken += [_box(x.at(point.x), y.at(point.y), 7)]
        taken += [(min(ends[0]), y.at(point.y) - 1, max(ends[0]), y.at(point.y) + 1)]
        taken += [(x.at(point.x) - 1, min(ends[1]), x.at(point.x) + 1, max(ends[1]))]
    for point in points:
        at_x, at_y = x.at(point.x), y.at(point.y)
        radius = 0 if point.size is None else round(14 * (point.size / largest) ** 0.5, 2)
        place, where = _label_place(at_x, at_y, max(radius, 5), point.label, taken)
        taken.append(where)
        (x_low, x_high), (y_low, y_high) = point.x_interval, point.y_interval
        marks.append(
            tag(
                "g",
                tag("title", point.title),
                tag("circle", cx=at_x, cy=at_y, r=radius, class_="area") if radius else None,
                tag("path", d=f"M{x.at(x_low):g} {at_y:g}H{x.at(x_high):g}", class_="whisker"),
                tag("path", d=f"M{at_x:g} {y.at(y_low):g}V{y.at(y_high):g}", class_="whisker"),
                tag("circle", cx=at_x, cy=at_y, r=4, class_="hollow" if point.hollow else "mark"),
                tag("text", point.label, x=place[0], y=place[1], class_=f"label {place[2]}"),
                class_=colour(point.colour),
            )
        )
    return _drawing(_frame(x, y, x_title=x_title, y_title=y_title, x_percent=True), *marks, label=label)


_Box = tuple[float, float, float, float]


def _box(x: float, y: float, half: float) -> _Box:
    return x - half, y - half, x + half, y + half


def _overlap(a: _Box, b: _Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _label_place(
    x: float, y: float, away: float, label: str, taken: Sequence[_Box]
) -> tuple[tuple[float, float, str], _Box]:
    """Return where a label hides least of what is there, and the room that it takes."""
    wide, best = _LETTER * len(label), None
    for raised in (0, -9, 9, -16, 16, -24, 24):
        for left, where, kind in (
            (x + away + 3, x + away + 3, "start"),
            (x - away - 3 - wide, x - away - 3, "end"),
            (x - wide / 2, x, "middle"),
        ):
            if kind == "middle" and abs(raised) < 24:
                continue
            box = (left, y + raised - 7, left + wide, y + raised + 6)
            outside = (
                max(0, box[2] - _WIDTH) + max(0, _LEFT - box[0]) + max(0, box[3] - _HEIGHT + _BOTTOM) + max(0, -box[1])
            )
            cost = sum(_overlap(box, other) for other in taken) + 1e4 * outside + abs(raised) / 4
            if best is None or cost < best[0]:
                best = cost, (round(where, 2), round(y + raised + 4, 2), kind), box
    assert best is not None
    return best[1], best[2]


def lines(found: Sequence[Line], *, x_title: str, y_title: str, label: str, mark: float | None = None) -> Markup:
    """Return lines over a number, fractions from 0 to 1, their intervals as bands; ``mark`` is an upright line."""
    x = axis([at for line in found for at, _ in line.points], start=_LEFT, end=_WIDTH - _RIGHT)
    y = axis([0, 1], start=_HEIGHT - _BOTTOM, end=_TOP, top=1)
    upright = None
    if mark is not None:
        upright = tag("path", d=f"M{x.at(mark):g} {y.start:g}V{y.end:g}", class_="guide")
    drawn = []
    for line in found:
        spans = [(at, low, high) for (at, _), (low, high) in zip(line.points, line.intervals, strict=True)]
        upper = [f"{x.at(at):g} {y.at(high):g}" for at, _, high in spans]
        lower = [f"{x.at(at):g} {y.at(low):g}" for at, low, _ in spans]
        drawn.append(
            tag(
                "g",
                tag("path", d=f"M{'L'.join(upper + lower[::-1])}Z", class_="band"),
                tag(
                    "path",
                    d=f"M{'L'.join(f'{x.at(at):g} {y.at(value):g}' for at, value in line.points)}",
                    class_="line",
                ),
                *(
                    tag(
                        "circle",
                        tag("title", f"{line.name}, {at:g}: {percent(value)}"),
                        cx=x.at(at),
                        cy=y.at(value),
                        r=3,
                        class_="mark",
                    )
                    for at, value in line.points
                ),
                class_=colour(line.colour),
            )
        )
    return _drawing(_frame(x, y, x_title=x_title, y_title=y_title, x_percent=False), upright, *drawn, label=label)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one path does on one class: fractions on clean images and under the worst attack, None without any."""

    clean: float
    worst: float | None
    colour: int


def pairs(rows: Sequence[tuple[str, Sequence[Pair]]], *, x_title: str, label: str) -> Markup:
    """Return a line for each class: for each path a full mark on clean images, a hollow one under attack."""
    line = 12 * max(len(found) for _, found in rows) + 8
    wide = min(max(len(name) for name, _ in rows), 14)
    height = _TOP + line * len(rows) + _BOTTOM
    x = axis([0, 1], start=14 + _LETTER * wide, end=_WIDTH - _RIGHT, top=1)
    parts = []
    for value in x.ticks:
        parts.append(tag("path", d=f"M{x.at(value):g} {_TOP}V{height - _BOTTOM:g}", class_="grid"))
        parts.append(tag("text", f"{100 * value:g}", x=x.at(value), y=height - _BOTTOM + 17, class_="tick middle"))
    parts.append(tag("text", x_title, x=(x.start + x.end) / 2, y=height - _BOTTOM + 36, class_="title middle"))
    for i, (name, found) in enumerate(rows):
        top = _TOP + line * i
        short = name if len(name) <= wide else name[: wide - 1] + "…"
        parts.append(tag("text", short, x=x.start - 8, y=round(top + line / 2 + 4, 2), class_="tick end"))
        for j, pair in enumerate(found):
            y = top + 10 + 12 * j
            words, clean = f"{name}: {percent(pair.clean)} clean", x.at(pair.clean)
            marks = [tag("circle", cx=clean, cy=y, r=3.5, class_="mark")]
            if pair.worst is not None:
                words += f", {percent(pair.worst)} under the worst attack"
                worst = x.at(pair.worst)
                hollow = tag("circle", cx=worst, cy=y, r=3.5, class_="hollow")
                marks = [tag("path", d=f"M{worst:g} {y}H{clean:g}", class_="line"), hollow, *marks]
            parts.append(tag("g", tag("title", words), *marks, class_=colour(pair.colour)))
    return _drawing(*parts, label=label, height=height)
