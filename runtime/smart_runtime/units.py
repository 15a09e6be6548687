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
