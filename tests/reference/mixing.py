"""The mix of two networks, the softmax over a temperature and the calibration error, in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def softmax(scores: Floats, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    scaled = scores.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def mix(first: Floats, second: Floats, *, share: float, temperatures: tuple[float, float]) -> npt.NDArray[np.float64]:
    """The mixed probabilities, (N, classes)."""
    return (1 - share) * softmax(first, temperatures[0]) + share * softmax(second, temperatures[1])


def calibration_error(probabilities: Floats, labels: npt.NDArray[np.int64], *, bins: int = 15) -> float:
    """Guo et al. 2017, equation 3, bin by bin: (0, 1/15], (1/15, 2/15] and so on."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for number in range(bins):
        own = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if own.any():
            total += own.sum() * abs(right[own].mean() - confidence[own].mean())
    return float(total / len(labels))
