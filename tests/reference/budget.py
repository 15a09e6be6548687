"""Budgets and overlaps by brute force, in plain NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np


def erk_densities(shapes: Sequence[Sequence[int]], *, total: int, sizes: Sequence[int]) -> list[float]:
    """Return each layer's density as RigL's section 3 has it: those above 1 are set to 1, and the others scaled again.

    Args:
        shapes: of the weights, (out, in, ...).
        total: what all keep together.
        sizes: what a density of 1 keeps in each.
    """
    raw = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    full, left = np.zeros(len(raw), dtype=bool), np.array(sizes, dtype=float)
    while True:
        scale = (total - left[full].sum()) / (raw * left)[~full].sum() if not full.all() else 0.0
        above = ~full & (scale * raw > 1)
        if not above.any():
            return [1.0 if whole else float(scale * one) for whole, one in zip(full, raw, strict=True)]
        full |= above


def overlap(masks: Mapping[str, Sequence[np.ndarray]]) -> tuple[float, list[float]]:
    """Return intersection over union of the masks of all paths: of all places together, and of each."""
    each = [np.stack(place) for place in zip(*masks.values(), strict=True)]
    both, either = [m.all(axis=0).sum() for m in each], [m.any(axis=0).sum() for m in each]
    return sum(both) / sum(either), [b / e for b, e in zip(both, either, strict=True)]


def mean_counts(size: int, *, first: int, second: int) -> tuple[float, float]:
    """Return the means of intersection and union over every pair of masks that keep so many of ``size``."""
    pairs = [
        (len(set(a) & set(b)), len(set(a) | set(b)))
        for a in combinations(range(size), first)
        for b in combinations(range(size), second)
    ]
    both, either = np.mean(pairs, axis=0)
    return float(both), float(either)
