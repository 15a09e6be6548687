"""Projected gradient descent on a linear classifier, where the gradient is known in closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def project(changed: Array, images: Array, *, eps: float) -> Array:
    """Return the nearest point within eps of ``images`` (maximum norm) and in [0, 1]."""
    return np.clip(np.clip(changed, images - eps, images + eps), 0, 1)


def pgd_linear(
    images: Array, labels: npt.NDArray[np.int64], start: Array, *, weight: Array, eps: float, step: float, steps: int
) -> Array:
    """Climb the cross-entropy of softmax(images @ weight.T), or its mean over networks, by signed steps from ``start``.

    Args:
        images: (N, D) in [0, 1].
        labels: (N,).
        start: (N, D).
        weight: (classes, D), or (networks, classes, D).
        eps: radius.
        step: size of a step.
        steps: how many.
    """
    current = start
    networks = weight.reshape(-1, *weight.shape[-2:])
    target = np.eye(weight.shape[-2])[labels]
    for _ in range(steps):
        gradients = []
        for network in networks:
            scores = current @ network.T
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            gradients.append((shares - target) @ network)
        current = project(current + step * np.sign(np.mean(gradients, axis=0)), images, eps=eps)
    return current
