"""Numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Sequence

from smart_runtime.units import si
from smart_train.evaluation.page.html import Markup, join, tag


def percent(value: float) -> str:
    """Return a fraction as ``97.2%``."""
    return f"{100 * value:.1f}%"


def span(interval: Sequence[float]) -> str:
    """Return the ends of an interval of fractions as ``95.0 to 98.5``, in percent."""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def points(difference: float) -> str:
    """Return a difference of fractions without its sign: ``54.2 points``."""
    return f"{abs(100 * difference):.1f} points"


def latency(ms: float) -> str:
    """Return milliseconds as people say them: ``33.1 us``, ``4.12 ms``."""
    return f"{1000 * ms:.3g} µs" if ms < 1 else f"{ms:.3g} ms"


def size(count: int) -> str:
    """Return bytes as ``700 kB``."""
    return si(count, "B")


def accuracy(value: float, interval: Sequence[float] | None = None, *, colour: str = "c0") -> Markup:
    """Return an accuracy for a table's cell: the number, its interval, and both as a bar."""
    low, high = interval or (value, value)
    return join(
        tag("span", percent(value), class_="figure"),
        tag("span", span(interval), class_="interval") if interval else None,
        bar(value, low=low, high=high, colour=colour),
    )


def bar(value: float, *, low: float, high: float, colour: str) -> Markup:
    """Return a fraction as a bar from 0 to 1 with its interval as a line; what it shows stands beside it as text."""
    width = 100.0
    return tag(
        "svg",
        tag("rect", x=0, y=3, width=width, height=4, class_="track"),
        tag("rect", x=0, y=3, width=round(width * value, 2), height=4, class_=f"fill {colour}"),
        tag("path", d=f"M{width * low:.2f} 5H{width * high:.2f}", class_="whisker") if high > low else None,
        class_="bar",
        viewBox=f"0 0 {width:.0f} 10",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
