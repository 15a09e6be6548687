"""Numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Sequence

from smart_common.units import si


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
