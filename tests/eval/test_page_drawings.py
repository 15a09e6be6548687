"""The page's drawings by their geometry."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.reports import Parsed, marks
from smart_eval.page.page import ENVIRONMENT
from smart_eval.page.plots import Line, Pair, Point, axis

CHARTS: Any = ENVIRONMENT.get_template("charts.html").module
MACROS: Any = ENVIRONMENT.get_template("macros.html").make_module({"report": None})


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=9),
    scale=st.sampled_from([1e-6, 1.0, 255.0]),
    bounded=st.booleans(),
)
def test_an_axis_holds_its_values_between_round_numbers(values: list[float], scale: float, bounded: bool) -> None:
    values = [value * scale for value in values]
    found = axis(values, start=10, end=110, top=1 if bounded and scale <= 1 else None)
    assert found.low <= min(values) + 1e-9 * scale
    assert found.high >= max(values) - 1e-9 * scale
    assert 2 <= len(found.ticks) <= 9
    assert all(10 - 1e-6 <= found.at(value) <= 110 + 1e-6 for value in [*values, *found.ticks])


def number(element: dict[str, str | None], key: str) -> float:
    value = element[key]
    assert value is not None
    return float(value)


def point(x: float, y: float, **changes: Any) -> Point:
    usual = Point(
        x=x, y=y, x_interval=(x - 0.05, x + 0.05), y_interval=(y - 0.1, y + 0.1), size=None, label="A 33 µs",
        title="all of it", colour="c0", hollow=False,
    )  # fmt: skip
    return replace(usual, **changes)


def test_the_trade_off_is_drawn_to_scale() -> None:
    points = [point(0.2, 0.5, size=1.0, colour="c1"), point(0.4, 0.8, size=4.0), point(0.6, 0.8, hollow=True)]
    page = Parsed(CHARTS.scatter(points, x_title="x", y_title="y", label="all in words"))
    small, large = (number(one, "r") for one in marks(page, "area"))
    assert large == pytest.approx(2 * small, abs=0.02), "four times the area"
    first, second, third = [*marks(page, "mark"), *marks(page, "hollow")]
    xs, ys = ([number(one, key) for one in (first, second, third)] for key in ("cx", "cy"))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.02)
    assert xs[0] < xs[1]
    assert ys[0] > ys[1] == ys[2], "up is better"
    whiskers = [re.findall(r"[-\d.]+", one["d"] or "") for one in marks(page, "whisker")]
    left, at, right = (float(value) for value in whiskers[0])
    assert (left + right) / 2 == pytest.approx(xs[0], abs=0.02)
    assert at == ys[0]
    assert (right - left) == pytest.approx(0.5 * (xs[1] - xs[0]), abs=0.02)
    assert marks(page, "chart")[0]["aria-label"] == "all in words"
    assert marks(page, "chart")[0]["role"] == "img"


def labels(page: Parsed) -> list[tuple[float, float, float, float]]:
    """The boxes of the labels of a drawing of which all say the same: left, top, right, bottom."""
    wide, found = 6.4 * len("A 33 µs"), []
    for kind, shift in (("start", 0.0), ("end", 1.0), ("middle", 0.5)):
        for one in marks(page, f"label {kind}"):
            left, base = number(one, "x") - shift * wide, number(one, "y")
            found.append((left, base - 11, left + wide, base + 2))
    return found


@example([(0.75, 0.5), (0.8984375, 0.5), (0.125, 0.5)])
@given(st.lists(st.tuples(st.floats(0.06, 0.94), st.floats(0.11, 0.89)), min_size=1, max_size=8))
def test_labels_stay_inside_of_the_drawing(places: list[tuple[float, float]]) -> None:
    page = Parsed(CHARTS.scatter([point(x, y) for x, y in places], x_title="x", y_title="y", label=""))
    boxes = labels(page)
    assert len(boxes) == len(places)
    for left, top, right, bottom in boxes:
        assert 0 <= left <= right <= 360
        assert 0 <= top <= bottom <= 270


def test_labels_of_equal_points_are_not_on_each_other() -> None:
    boxes = labels(Parsed(CHARTS.scatter([point(0.5, 0.5)] * 4, x_title="x", y_title="y", label="")))
    for one, other in itertools.combinations(boxes, 2):
        wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
        assert wide <= 0 or high <= 5, "lines of a text may touch"


def test_lines_and_pairs_are_drawn_to_scale() -> None:
    line = Line(
        name="p", points=[(0, 1.0), (2, 0.5), (4, 0.0)], intervals=[(0.9, 1.0), (0.4, 0.6), (0, 0.1)], colour="c2"
    )
    page = Parsed(CHARTS.lines([line], x_title="x", y_title="y", label="", mark=2))
    dots = [(number(one, "cx"), number(one, "cy")) for one in marks(page, "mark")]
    assert dots == [(54, 14), (200, 120), (346, 226)]
    assert marks(page, "guide")[0]["d"] == "M200 226V14"
    assert marks(page, "line")[0]["d"] == "M54 14L200 120L346 226"
    assert marks(page, "band")[0]["d"] == "M54 14L200 98.8L346 204.8L346 226L200 141.2L54 35.2Z"
    assert "p, 2: 50.0%" in page.text
    assert not marks(Parsed(CHARTS.lines([line], x_title="x", y_title="y", label="")), "guide")
    both, clean = Pair(clean=1.0, worst=0.5, colour="c0"), Pair(clean=0.0, worst=None, colour="c1")
    page = Parsed(
        CHARTS.pairs([("a class of a long name", [both, clean]), ("dog", [both, clean])], x_title="x", label="")
    )
    assert "a class of a …" in page.words
    assert "a class of a long name: 100.0% clean, 50.0% under the worst attack" in page.text
    assert "dog: 0.0% clean" in page.words
    full, hollow = marks(page, "mark"), marks(page, "hollow")
    assert (len(full), len(hollow)) == (4, 2)
    left, middle, right = number(full[1], "cx"), number(hollow[0], "cx"), number(full[0], "cx")
    assert right == 346
    assert middle == pytest.approx((left + right) / 2, abs=0.02)
    assert number(full[1], "cy") - number(full[0], "cy") == 12
    assert number(full[2], "cy") - number(full[0], "cy") == 32, "two paths and a gap"


def test_a_bar_is_as_long_as_its_share() -> None:
    page = Parsed(MACROS.barred(0.25, (0.2, 0.35), colour="c1"))
    assert [attributes.get("width") for name, attributes in page.elements if name == "rect"] == ["100.0", "25.0"]
    assert marks(page, "fill c1")
    assert marks(page, "whisker")[0]["d"] == "M20.00 5H35.00"
    assert page.text == "25.0%20.0 to 35.0"
    assert marks(Parsed(MACROS.barred(0.25, (0.2, 0.35), colour="")), "fill")
