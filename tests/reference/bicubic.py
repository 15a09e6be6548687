"""Bicubic enlargement (Keys 1981 with a = -0.75), edges repeated, in plain NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _weights(before: int, after: int) -> Array:
    """Return the (after, before) matrix that enlarges one axis: pixel centres are at whole numbers and a half."""

    def kernel(distance: float) -> float:
        x, a = abs(distance), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((after, before))
    for i in range(after):
        place = (i + 0.5) * before / after - 0.5
        for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[i, min(max(j, 0), before - 1)] += kernel(place - j)
    return matrix


def enlarged(maps: Array, height: int, width: int) -> Array:
    """Return maps (N, h, w) as (N, height, width)."""
    result: Array = np.einsum("ih,jw,nhw->nij", _weights(maps.shape[1], height), _weights(maps.shape[2], width), maps)
    return result
