"""Crops and flips of single images, in plain NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


def crop(image: Image, *, pad: int, down: int, right: int, mirrored: bool) -> Image:
    """Mirror what a window of the image's size sees at (down, right) of the image in a frame of zeros.

    Args:
        image: uint8 (H, W, C).
        pad: width of the frame.
        down: 0 to 2 pad.
        right: 0 to 2 pad.
        mirrored: left and right are exchanged.
    """
    height, width, channels = image.shape
    framed = np.zeros((height + 2 * pad, width + 2 * pad, channels), dtype=np.uint8)
    framed[pad : pad + height, pad : pad + width] = image
    seen = framed[down : down + height, right : right + width]
    return seen[:, ::-1] if mirrored else seen


def outcomes(image: Image, *, pad: int, flip: bool) -> dict[tuple[int, int, bool], Image]:
    """Return everything that a random crop and flip can make of an image, by (down, right, mirrored)."""
    return {
        (down, right, mirrored): crop(image, pad=pad, down=down, right=right, mirrored=mirrored)
        for down in range(2 * pad + 1)
        for right in range(2 * pad + 1)
        for mirrored in ((False, True) if flip else (False,))
    }
