"""Frames to a CUSUM's alarm by brute force: the test run again and again on drawn steps."""

from __future__ import annotations

import numpy as np


def simulated_run_lengths(
    steps: np.ndarray, probabilities: np.ndarray, *, threshold: int, runs: int, seed: int
) -> np.ndarray:
    """Return the frames to the alarm of each of ``runs`` runs, all of them side by side."""
    rng = np.random.default_rng(seed)
    cumulated = np.cumsum(probabilities.ravel())
    flat = steps.ravel()
    values = np.zeros(runs)
    lengths = np.zeros(runs)
    going = np.arange(runs)
    while len(going):
        drawn = np.searchsorted(cumulated, rng.random(len(going)) * cumulated[-1], side="right")
        values[going] = np.maximum(values[going] + flat[drawn], 0)
        lengths[going] += 1
        going = going[values[going] < threshold]
    return lengths
