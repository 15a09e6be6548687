"""Numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Sequence

from smart_common.units import si
from smart_eval.page.html import Markup, join, tag


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
    """Return milliseconds as people say them: ``33.1 µs``, ``4.12 ms``, ``1.2 s``."""
    for factor, unit in ((1000, "µs"), (1, "ms")):
        if factor * ms < 999.5:  # more would be shown as 1e+03
            return f"{factor * ms:.3g} {unit}"
    return si(ms / 1000, "s")


def radius(eps: float) -> str:
    """Return eps as people write it: ``8/255`` where it is a whole number of levels, else ``0.3``."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 1e-6 and levels != 255 else f"{eps:.4g}"


def size(count: int) -> str:
    """Return bytes as ``700 kB``."""
    return si(count, "B")


def accuracy(value: float, interval: Sequence[float]) -> Markup:
    """Return an accuracy for a table's cell: the number, and below it its interval."""
    return join(tag("span", percent(value), class_="figure"), tag("span", span(interval), class_="interval"))


def barred(value: float, interval: Sequence[float], *, colour: str | None) -> Markup:
    """Return an accuracy for a table's cell with both also drawn as a bar from 0 to 1; grey for no colour."""
    low, high = interval
    width = 100.0
    return join(
        accuracy(value, interval),
        tag(
            "svg",
            tag("rect", x=0, y=3, width=width, height=4, class_="track"),
            tag(
                "rect", x=0, y=3, width=round(width * value, 2), height=4, class_=f"fill {colour}" if colour else "fill"
            ),
            tag("path", d=f"M{width * low:.2f} 5H{width * high:.2f}", class_="whisker"),
            class_="bar",
            viewBox=f"0 0 {width:.0f} 10",
            preserveAspectRatio="none",
            aria_hidden="true",
        ),
    )
