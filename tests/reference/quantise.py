"""Symmetric and asymmetric int8 in plain NumPy, from ONNX's definition of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def symmetric(values: Array) -> tuple[float, Array]:
    """Return the scale that puts the largest magnitude on 127, and the values as that int8 gives them back."""
    scale = float(np.abs(values).max()) / 127 or 1.0
    return scale, np.clip(np.rint(values / scale), -128, 127) * scale


def symmetric_per_channel(weight: Array) -> tuple[Array, Array]:
    """Quantise each output channel of (M, C, ...) by itself: scales (M,), and the weight as int8 gives it back."""
    found = [symmetric(channel) for channel in weight]
    return np.array([scale for scale, _ in found]), np.stack([channel for _, channel in found])


def asymmetric(values: Array) -> tuple[float, int, Array]:
    """Return the scale and zero point that put the range and 0 on 0 to 255, and the values as uint8 gives them back."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (high - low) / 255
    zero = int(np.rint(-low / scale))
    return scale, zero, (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


def convolution(images: Array, weight: Array, bias: Array) -> Array:
    """Convolve (N, C, H, W) with (M, C, K, K), padded with zeros to the same size; K is odd."""
    count, _, height, width = images.shape
    size = weight.shape[2]
    edge = size // 2
    padded = np.pad(images, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    result = np.zeros((count, len(weight), height, width)) + bias[:, None, None]
    for row in range(size):
        for column in range(size):
            window = padded[:, :, row : row + height, column : column + width]
            result += np.einsum("nchw,mc->nmhw", window, weight[:, :, row, column])
    return result
