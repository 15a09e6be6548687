"""A residual network's masked path in plain NumPy float64, straight from the formulas: the oracle of folding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Tensors = Mapping[str, npt.NDArray[np.generic]]


def conv2d(images: Array, weight: Array, *, stride: int, padding: int) -> Array:
    """Convolve (N, C, H, W) with (O, C, k, k), the sum written out over the kernel's positions."""
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    side = weight.shape[2]
    height = (padded.shape[2] - side) // stride + 1
    width = (padded.shape[3] - side) // stride + 1
    result = np.zeros((len(images), len(weight), height, width))
    for i in range(side):
        for j in range(side):
            window = padded[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            result += np.einsum("nchw,oc->nohw", window, weight[:, :, i, j])
    return result


def batch_norm(features: Array, tensors: Tensors, name: str, keep: npt.NDArray[np.bool_] | None) -> Array:
    """Normalise with running statistics (Ioffe and Szegedy 2015), then zero the masked channels."""
    mean, var, weight, bias = (
        np.asarray(tensors[f"{name}.{part}"], dtype=np.float64)[:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    result = (features - mean) / np.sqrt(var + 1e-5) * weight + bias
    return result if keep is None else result * keep[:, None, None]


def forward(
    tensors: Tensors,
    images: npt.NDArray[np.floating],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    masks: Mapping[str, npt.NDArray[np.bool_]],
) -> Array:
    """Return the scores (N, classes) of a basic-block residual network with a small-image stem.

    Args:
        tensors: its state dict as arrays.
        images: (N, C, H, W) in [0, 1].
        mean: normalisation per channel.
        std: likewise.
        masks: bool (channels,) by batch-norm name; a batch norm that is not named keeps all.
    """

    def weight(name: str) -> Array:
        return np.asarray(tensors[f"{name}.weight"], dtype=np.float64)

    def norm(features: Array, name: str) -> Array:
        return batch_norm(features, tensors, name, masks.get(name))

    x = (images.astype(np.float64) - np.reshape(mean, (1, -1, 1, 1))) / np.reshape(std, (1, -1, 1, 1))
    x = np.maximum(norm(conv2d(x, weight("conv"), stride=1, padding=1), "bn"), 0)
    blocks = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")})
    for block in blocks:
        prefix = f"blocks.{block}"
        projected = f"{prefix}.shortcut.0.weight" in tensors
        first = weight(f"{prefix}.conv1")
        stride = 2 if projected and first.shape[0] != first.shape[1] else 1
        inner = np.maximum(norm(conv2d(x, first, stride=stride, padding=1), f"{prefix}.bn1"), 0)
        inner = norm(conv2d(inner, weight(f"{prefix}.conv2"), stride=1, padding=1), f"{prefix}.bn2")
        if projected:
            x = norm(conv2d(x, weight(f"{prefix}.shortcut.0"), stride=stride, padding=0), f"{prefix}.shortcut.1")
        x = np.maximum(inner + x, 0)
    scores: Array = x.mean(axis=(2, 3)) @ weight("fc").T + np.asarray(tensors["fc.bias"], dtype=np.float64)
    return scores
