"""How many frames a CUSUM takes to its alarm: exactly, as a Markov chain (Brook and Evans 1972, Biometrika 59)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

STEPS_PER_NAT = 32
"""Log-likelihood ratios are whole numbers of these steps, so that the chain's states are the values S can have."""

LONGEST = 1e10
"""Longer runs are taken for endless: in float64 the chain's equations have no digits left for them."""

MOST_NATS = 64
"""No threshold is higher: a mean time of `LONGEST` takes at most its logarithm, 23 (Lorden 1971)."""


def run_length(steps: NDArray[np.int64], probabilities: NDArray[np.float64], *, threshold: int) -> float:
    """Return the expected number of frames until S, from 0, is at ``threshold``; infinite above `LONGEST`.

    Args:
        steps: What each kind of frame adds to S, in steps, of any shape.
        probabilities: How likely each is, of the same shape; they sum to 1.
        threshold: In steps, 1 or more.
    """
    sizes, which = np.unique(steps.ravel(), return_inverse=True)
    weights = np.bincount(which.ravel(), weights=probabilities.ravel())
    if not (weights[sizes > 0] > 0).any():
        return math.inf
    states = np.arange(threshold)
    stays = np.eye(threshold)
    for size, weight in zip(sizes, weights, strict=True):
        after = np.maximum(states + size, 0)
        below = after < threshold
        np.subtract.at(stays, (states[below], after[below]), weight)
    try:
        length = float(np.linalg.solve(stays, np.ones(threshold))[0])
    except np.linalg.LinAlgError:
        return math.inf
    return length if 0 < length <= LONGEST else math.inf


def threshold_for(steps: NDArray[np.int64], probabilities: NDArray[np.float64], *, frames: float) -> int | None:
    """Return the least threshold, in steps, whose `run_length` is at least ``frames``; None if none up to `MOST_NATS`.

    Arguments as for `run_length`; ``frames`` is in [1, `LONGEST`]. The logarithm of ``frames`` is an upper bound
    where the steps are true log-likelihood ratios (Lorden 1971, Annals of Mathematical Statistics 42); the search
    begins there and goes on above it, since ours are smoothed, bounded and rounded.
    """
    low, high = 0, max(1, math.ceil(math.log(frames) * STEPS_PER_NAT))
    while run_length(steps, probabilities, threshold=high) < frames:
        low, high = high, 2 * high
        if high > MOST_NATS * STEPS_PER_NAT:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if run_length(steps, probabilities, threshold=middle) < frames:
            low = middle
        else:
            high = middle
    return high
