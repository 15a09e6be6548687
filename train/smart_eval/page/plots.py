"""The page's drawings: what of a report they show, and where its figures come in them; charts.html draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smart_common.units import si
from smart_eval.comparison import Comparison
from smart_eval.page.figures import latency, percent
from smart_eval.page.subject import Model, Report, suspect, under_attack

WIDTH, HEIGHT = 360, 270  # in units; 12 of them are a line of text, so it can be read at a phone's width
_LEFT, _RIGHT, TOP, _BOTTOM = 54, 14, 14, 44
_LETTER = 6.4  # a digit's width at the charts' font size, for where labels fit
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MOST_CLASSES = 20  # drawn; the table has all


@dataclass(frozen=True)
class Axis:
    """A line from ``low`` to ``high`` that is drawn from ``start`` to ``end``, with a tick at every ``step``."""

    low: float
    high: float
    step: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return where ``value`` is drawn, rounded to what a screen can show, so that equal pages have equal bytes."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[float]:
        """The values that get a mark and a number."""
        count = round((self.high - self.low) / self.step)
        return [round(self.low + i * self.step, 10) for i in range(count + 1)]


def axis(values: Sequence[float], *, start: float, end: float, ticks: int = 5, top: float | None = None) -> Axis:
    """Return an axis that holds all ``values`` between round numbers.

    Args:
        values: what is to be shown, one at least.
        start: where the lower end is drawn.
        end: where the upper end is drawn.
        ticks: about how many steps.
        top: the axis never goes above this: 1 for fractions.
    """
    low, high = min(values), max(values)
    width = max(high - low, 1e-3 * max(abs(high), 1e-6))
    rough = width / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * step for step in _STEPS if power * step >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first -= 1
    if top is not None and last * step > top:
        last = max(math.floor(top / step + 1e-9), first + 1)
    return Axis(first * step, last * step, step, start, end)


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
        colour: the style's class of its colour.
        hollow: not to be trusted.
        cross: drawn as a cross.
    """

    x: float
    y: float
    x_interval: Sequence[float]
    y_interval: Sequence[float]
    size: float | None
    label: str
    title: str
    colour: str
    hollow: bool
    cross: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through (x, fraction), each with its interval."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[Sequence[float]]
    colour: str

    @property
    def band(self) -> list[tuple[float, float]]:
        """The outline of the intervals, there along the upper ends and back along the lower ones."""
        ends = [(at, low, high) for (at, _), (low, high) in zip(self.points, self.intervals, strict=True)]
        return [(at, high) for at, _, high in ends] + [(at, low) for at, low, _ in reversed(ends)]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a point is drawn: its middle, the radius of its area (0 for none), and its label from an anchor."""

    x: float
    y: float
    radius: float
    label_x: float
    label_y: float
    anchor: str


def scatter(points: Sequence[Point]) -> tuple[Axis, Axis, list[tuple[Point, Mark]]]:
    """Return the axes of a trade-off, and its points with where each is drawn."""
    x = axis([end for point in points for end in point.x_interval], start=_LEFT, end=WIDTH - _RIGHT - 10, top=1)
    y = axis([end for point in points for end in point.y_interval], start=HEIGHT - _BOTTOM, end=TOP, top=1)
    largest = max((point.size for point in points if point.size is not None), default=1.0)
    taken: list[_Box] = []
    for point in points:
        ends = [x.at(end) for end in point.x_interval], [y.at(end) for end in point.y_interval]
        taken += [(x.at(point.x) - 7, y.at(point.y) - 7, x.at(point.x) + 7, y.at(point.y) + 7)]
        taken += [(min(ends[0]), y.at(point.y) - 1, max(ends[0]), y.at(point.y) + 1)]
        taken += [(x.at(point.x) - 1, min(ends[1]), x.at(point.x) + 1, max(ends[1]))]
    found = []
    for point in points:
        radius = 0 if point.size is None else round(14 * (point.size / largest) ** 0.5, 2)
        (label_x, label_y, anchor), box = _label_place(x.at(point.x), y.at(point.y), max(radius, 5), point.label, taken)
        taken.append(box)
        mark = Mark(x=x.at(point.x), y=y.at(point.y), radius=radius, label_x=label_x, label_y=label_y, anchor=anchor)
        found.append((point, mark))
    return x, y, found


_Box = tuple[float, float, float, float]


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
                max(0, box[2] - WIDTH) + max(0, _LEFT - box[0]) + max(0, box[3] - HEIGHT + _BOTTOM) + max(0, -box[1])
            )
            cost = sum(_overlap(box, other) for other in taken) + 1e4 * outside + abs(raised) / 4
            if best is None or cost < best[0]:
                best = cost, (round(where, 2), round(y + raised + 4, 2), kind), box
    assert best is not None
    return best[1], best[2]


def lines(found: Sequence[Line]) -> tuple[Axis, Axis]:
    """Return the axes of lines over a number, fractions from 0 to 1."""
    x = axis([at for line in found for at, _ in line.points], start=_LEFT, end=WIDTH - _RIGHT)
    return x, axis([0, 1], start=HEIGHT - _BOTTOM, end=TOP, top=1)


def outline(x: Axis, y: Axis, points: Sequence[tuple[float, float]]) -> str:
    """Return the points as an SVG path."""
    return f"M{'L'.join(f'{x.at(at):g} {y.at(value):g}' for at, value in points)}"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one path does on one class: fractions on clean images and under the worst attack, None without any."""

    clean: float
    worst: float | None
    colour: str


@dataclass(frozen=True, kw_only=True)
class PairPlot:
    """Where pairs are drawn, ``line`` units for each class down to ``bottom``; names have ``letters``."""

    x: Axis
    line: int
    bottom: int
    height: int
    letters: int

    def short(self, name: str) -> str:
        """Return as much of a name as there is room for."""
        return name if len(name) <= self.letters else name[: self.letters - 1] + "…"


def pairs(rows: Sequence[tuple[str, Sequence[Pair]]]) -> PairPlot:
    """Return where the pairs of each class are drawn."""
    line = 12 * max(len(found) for _, found in rows) + 8
    letters = min(max(len(name) for name, _ in rows), 14)
    bottom = TOP + line * len(rows)
    x = axis([0, 1], start=14 + _LETTER * letters, end=WIDTH - _RIGHT, top=1)
    return PairPlot(x=x, line=line, bottom=bottom, height=bottom + _BOTTOM, letters=letters)


def letter(number: int) -> str:
    """Return what stands for the model of that number in a drawing of several."""
    return _LETTERS[number] if number < len(_LETTERS) else str(number + 1)


def trade_off(report: Report) -> list[Point]:
    """Return accuracy and robustness of each path of each model, sized by latency where it is known."""
    found = []
    for number, model in enumerate(report.models):
        speeds, _ = report.speeds(model)
        for path, row in model["paths"].items():
            speed = speeds.get(path)
            time = "" if speed is None else latency(speed.median_ms)
            value, interval = under_attack(model, path)
            doubted = suspect(model, path)
            words = f"{report.name(model)}, {path}: {percent(row['clean_accuracy'])} clean, "
            words += f"{percent(value)} under attack{' (suspect)' if doubted else ''}"
            found.append(
                Point(
                    x=value,
                    y=row["clean_accuracy"],
                    x_interval=interval,
                    y_interval=row["clean_interval"],
                    size=None if speed is None else speed.median_ms,
                    label=" ".join(filter(None, (letter(number) if report.several else "", time))),
                    title=words + (f", {time} a call" if time else ""),
                    colour=report.colour(path),
                    hollow=doubted,
                )
            )
    return found


def compared(report: Report, comparison: Comparison) -> list[Point]:
    """Return clean accuracy over that under the strongest attack, of every path of every subject, sized by MACs."""
    attack = comparison.strongest
    if attack is None:
        return []
    letters = {subject: letter(number) for number, subject in enumerate(comparison.subjects)}
    found = []
    for row in comparison.rows:
        x = row.attacks[attack]
        macs = "" if row.macs is None else f", {si(row.macs)} MACs"
        words = f"{report.short(row)}, {row.path}: {percent(row.clean.value)} clean, {percent(x.value)} under {attack}"
        words += " (suspect)" if row.suspect else ""
        found.append(
            Point(
                x=x.value,
                y=row.clean.value,
                x_interval=x.interval,
                y_interval=row.clean.interval,
                size=row.macs or None,
                label=letters[row.subject, row.digest],
                title=words + macs + (", dense" if row.dense else ""),
                colour=report.colour(row.path),
                hollow=row.warned or row.suspect,
                cross=row.dense,
            )
        )
    return found


def over_eps(report: Report, model: Model) -> list[Line]:
    """Return the accuracy of each path over the attack's radius."""
    curve = model["eps_curve"]
    return [
        Line(
            name=path,
            points=list(zip(curve["eps"], found["accuracy"], strict=True)),
            intervals=found["interval"],
            colour=report.colour(path),
        )
        for path, found in curve["paths"].items()
    ]


def corrupted(report: Report, model: Model, kind: str) -> list[Line]:
    """Return the accuracy of each path over the severity of one kind of corruption, of which 0 is none."""
    rows = [row for row in model["corruptions"] if row["name"] == kind]
    severities = [0, *(row["severity"] for row in rows)]
    lines = []
    for path, found in model["paths"].items():
        figures = [row["paths"][path] for row in rows]
        accuracies = [found["clean_accuracy"], *(one["accuracy"] for one in figures)]
        lines.append(
            Line(
                name=path,
                points=list(zip(severities, accuracies, strict=True)),
                intervals=[found["clean_interval"], *(one["interval"] for one in figures)],
                colour=report.colour(path),
            )
        )
    return lines


_SHOWN = ("aimed-at-clean", "silent", "adaptive")  # of the attackers before a tripwire


def roc(tripwire: Mapping[str, Any]) -> list[Line]:
    """Return what is caught over what is falsely taken for attacked, of three kinds of attackers."""
    found = {name: tripwire["attacked"][name]["roc"] for name in _SHOWN}
    return [
        Line(name=name, points=[(x, y) for x, y in curve], intervals=[(y, y) for _, y in curve], colour=f"c{number}")
        for number, (name, curve) in enumerate(found.items())
    ]


def shares(tripwire: Mapping[str, Any]) -> list[float]:
    """Return the shares of attacked frames that alarms were measured for."""
    kind = tripwire["attacked"][_SHOWN[0]]
    return [float(share) for share in next(iter(kind["frames_to_alarm"].values()))]


def meanings(model: Model) -> list[str]:
    """Return what the parameter of each kind of corruption means."""
    return list(dict.fromkeys(f"{row['name']}: {row['parameter_meaning']}" for row in model["corruptions"]))


def classes(report: Report, model: Model) -> list[tuple[str, list[Pair]]]:
    """Return each class with the accuracies of each path on it; of many classes those that are hit most."""
    rows = model["classes"]
    hit_most = sorted(range(len(rows)), key=lambda i: (min(p["robust_accuracy"] for p in rows[i]["paths"].values()), i))
    return [
        (
            rows[i]["name"],
            [
                Pair(
                    clean=found["clean_accuracy"],
                    worst=found["robust_accuracy"] if model["attacks"] else None,
                    colour=report.colour(path),
                )
                for path, found in rows[i]["paths"].items()
            ],
        )
        for i in sorted(hit_most[:_MOST_CLASSES])
    ]
