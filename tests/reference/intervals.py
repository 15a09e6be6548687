"""95% intervals, from their definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def wilson(correct: int, total: int, *, z: float) -> tuple[float, float]:
    """Return the fractions p that lie z standard errors, of p itself, from the measured one (Wilson 1927).

    They are the roots of (measured - p)^2 = z^2 p (1 - p) / total.
    """
    measured = correct / total
    square = z * z / total
    low, high = sorted(np.roots([1 + square, -(2 * measured + square), measured**2]).real)
    return float(low), float(high)


def speed_up_change(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], draws: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[float, float, float]:
    """Return one row's change of speed-up from run A to run B with its percentile bootstrap 95% interval.

    ``a`` and ``b`` are the block medians of the reference and of the row; each draw names rounds of A and rounds of B
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
    """

    def speed_up(run: Sequence[Sequence[float]], rounds: Sequence[int]) -> float:
        reference, row = ([medians[i] for i in rounds] for medians in run)
        return float(np.median(reference) / np.median(row))

    value = speed_up(b, range(len(b[0]))) / speed_up(a, range(len(a[0])))
    changes = sorted(speed_up(b, drawn_b) / speed_up(a, drawn_a) for drawn_a, drawn_b in draws)
    low, high = np.percentile(changes, [2.5, 97.5])
    return value, float(low), float(high)


def paired_drop(before: Sequence[bool], after: Sequence[bool], *, z: float) -> tuple[float, float]:
    """Return the adjusted Wald interval of how much less often ``after`` holds than ``before`` (Bonett and Price 2012).

    It is Wald's after one pair of each of the two kinds that differ was added: mean of the pairs' differences, and its
    standard error with N in the denominator of the variance.
    """
    pairs = [int(was) - int(is_now) for was, is_now in zip(before, after, strict=True)] + [1, -1]
    mean, error = np.mean(pairs), np.std(pairs) / np.sqrt(len(pairs))
    return max(-1.0, float(mean - z * error)), min(1.0, float(mean + z * error))
