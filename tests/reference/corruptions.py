"""Corruptions in plain NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float64]


def gaussian_blur(images: Images, sigma: float) -> Images:
    """Blur (N, H, W, C) by a sampled Gaussian of unit sum, cut off at four sigma, border pixels repeated mirrorwise."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        wide = np.pad(images, [(radius, radius) if a == axis else (0, 0) for a in range(4)], mode="symmetric")
        size = images.shape[axis]
        images = sum(
            weight * np.take(wide, range(shift, shift + size), axis=axis) for shift, weight in enumerate(kernel)
        )
    return images
