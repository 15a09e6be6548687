"""From latencies to the figures of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Block: TypeAlias = npt.NDArray[np.float64]
"""The latencies of one block of calls in ms, (calls,)."""

SOLO_TOLERANCE = 0.15
"""How far the median in a process of its own may lie from the interleaved one before the table says so."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Median and percentiles of all calls, in ms (linear interpolation between neighbours)."""

    median_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """How many times faster than the baseline, with the ends of its 95% interval.

    The interval holds within one run: it does not cover another process or another day.
    """

    value: float
    low: float
    high: float


def summarise(blocks: Sequence[Block]) -> Summary:
    """Return the figures of all calls of ``blocks`` together."""
    median, p90, p99 = np.percentile(np.concatenate(blocks), [50, 90, 99])
    return Summary(median_ms=float(median), p90_ms=float(p90), p99_ms=float(p99))


def speed_up(
    baseline: Sequence[Block], path: Sequence[Block], *, rng: np.random.Generator, resamples: int = 1000
) -> SpeedUp:
    """Return the ratio of the medians, baseline over path, with its percentile bootstrap 95% interval.

    Rounds are drawn with replacement, and of a drawn round both blocks are taken: they ran one after the other, so
    whatever slowed the machine down then slowed both. Calls of one block are not independent, hence rounds and not
    calls (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).

    Args:
        baseline: One block a round.
        path: One block a round, of the same rounds.
        rng: Draws the rounds.
        resamples: How often rounds are drawn.
    """
    rounds = len(baseline)
    ratios = np.empty(resamples)
    for i, drawn in enumerate(rng.integers(0, rounds, (resamples, rounds))):
        ratios[i] = _median([baseline[j] for j in drawn]) / _median([path[j] for j in drawn])
    low, high = np.percentile(ratios, [2.5, 97.5])
    return SpeedUp(value=_median(baseline) / _median(path), low=float(low), high=float(high))


def agrees(solo_median_ms: float, median_ms: float) -> bool:
    """Say whether a graph alone in a process is as fast as among the others, within `SOLO_TOLERANCE`."""
    return abs(solo_median_ms - median_ms) <= SOLO_TOLERANCE * median_ms


def _median(blocks: Sequence[Block]) -> float:
    return float(np.median(np.concatenate(blocks)))
