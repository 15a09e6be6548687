"""The roofline by hand, in plain NumPy: what a layer costs at a device's peaks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Figures = npt.NDArray[np.float64]


def peak_seconds(
    macs: Figures, weights: Figures, numbers_moved: Figures, *, ops_per_s: float, bytes_per_s: float, element: int
) -> Figures:
    """Each layer's longer of arithmetic and traffic; ``numbers_moved`` are its inputs and outputs."""
    seconds: Figures = np.maximum(2 * macs / ops_per_s, element * (weights + numbers_moved) / bytes_per_s)
    return seconds
