"""A 95% interval of a fraction, from its definition."""

from __future__ import annotations

import numpy as np


def wilson(correct: int, total: int, *, z: float) -> tuple[float, float]:
    """Return the fractions p that lie z standard errors, of p itself, from the measured one (Wilson 1927).

    They are the roots of (measured - p)^2 = z^2 p (1 - p) / total.
    """
    measured = correct / total
    square = z * z / total
    low, high = sorted(np.roots([1 + square, -(2 * measured + square), measured**2]).real)
    return float(low), float(high)
