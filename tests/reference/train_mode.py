"""A residual network in train mode, in plain NumPy float64: scores, and the features that methods look at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from reference.resnet import Array, Tensors, conv2d


def batch_norm(features: Array, weight: Array, bias: Array) -> Array:
    """Normalise each channel of (N, C, ...) by the batch's own mean and biased variance."""
    axes = (0, *range(2, features.ndim))
    shape = (1, -1, *[1] * (features.ndim - 2))
    centred = features - features.mean(axis=axes, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + 1e-5)
    result: Array = scaled * weight.reshape(shape) + bias.reshape(shape)
    return result


def forward(
    tensors: Tensors, images: npt.NDArray[np.floating], *, masks: Mapping[str, npt.NDArray[np.bool_]]
) -> tuple[Array, dict[str, Array]]:
    """Return the scores (N, classes) of a basic-block network with a small-image stem, and its features by name.

    Those are the output of each batch norm, ``map`` what the last block gives, and ``pooled`` what the classifier is
    given. Images are not normalised; ``masks`` are as of `reference.resnet.forward`.
    """
    features: dict[str, Array] = {}

    def at(name: str) -> Array:
        return np.asarray(tensors[name], dtype=np.float64)

    def norm(x: Array, name: str) -> Array:
        features[name] = batch_norm(x, at(f"{name}.weight"), at(f"{name}.bias"))
        if name in masks:
            features[name] = features[name] * masks[name][:, None, None]
        return features[name]

    x = np.maximum(norm(conv2d(images.astype(np.float64), at("conv.weight"), stride=1, padding=1), "bn"), 0)
    for block in sorted({int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}):
        prefix = f"blocks.{block}"
        stride = 2 if f"{prefix}.shortcut.0.weight" in tensors else 1
        inner = np.maximum(norm(conv2d(x, at(f"{prefix}.conv1.weight"), stride=stride, padding=1), f"{prefix}.bn1"), 0)
        inner = norm(conv2d(inner, at(f"{prefix}.conv2.weight"), stride=1, padding=1), f"{prefix}.bn2")
        if stride == 2:
            x = norm(conv2d(x, at(f"{prefix}.shortcut.0.weight"), stride=2, padding=0), f"{prefix}.shortcut.1")
        x = np.maximum(inner + x, 0)
    features["map"], features["pooled"] = x, x.mean(axis=(2, 3))
    return features["pooled"] @ at("fc.weight").T + at("fc.bias"), features


def cross_entropy(scores: Array, labels: npt.NDArray[np.int64]) -> float:
    """Return the mean cross-entropy."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_shares[np.arange(len(labels)), labels].mean())


def cosine_distance(first: Array, second: Array) -> float:
    """Return the mean over rows of 1 - cos."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float((1 - (first * second).sum(axis=1) / norms).mean())
