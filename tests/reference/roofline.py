"""The roofline by hand, in plain NumPy: what a layer costs at a device's peaks, or as fitted to a processor."""

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


def blocked_convolution_macs(weight: tuple[int, int, int, int], *, places: int, block: int) -> int:
    """Multiply-accumulates of a convolution that computes whole blocks of channels: counted on a padded weight."""
    out, read = weight[:2]
    padded = np.pad(np.ones(weight), [(0, -out % block), (0, -read % block if read >= block else 0), (0, 0), (0, 0)])
    return int(padded.size * places)
