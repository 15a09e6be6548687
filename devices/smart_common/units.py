"""Numbers for people."""

from __future__ import annotations


def si(value: float, unit: str = "") -> str:
    """Return ``value`` with three significant digits and an SI prefix: 1160000000 is ``1.16 G``."""
    for prefix in ("", "k", "M", "G", "T"):
        # 999.5 and more would be shown as 1000 with three digits: it takes the next prefix.
        if abs(value) < 999.5 or prefix == "T":
            break
        value /= 1000
    digits = f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    return f"{digits} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Return ``seconds``, 0 or more, as a person would say it: ``42 s``, ``3:07 min``, ``2:05:09 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
