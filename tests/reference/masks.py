"""How many channels and weights stay and which, in plain Python over lists."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def kept(size: int, *, density: Fraction, align: int) -> int:
    """Count up in aligned steps until the density is reached, never beyond the group."""
    count = align
    while count < density * size:
        count += align
    return min(count, size)


def cubic(size: int, *, target: int, step: int, steps: int) -> int:
    """Return the channels left after ``step`` of ``steps``: target + (size - target)(1 - t)^3, in exact fractions.

    A part of a channel that is still to be removed keeps the whole channel (Zhu and Gupta 2017, equation 1).
    """
    left = target + (size - target) * (1 - Fraction(step, steps)) ** 3
    return -(-left.numerator // left.denominator)


def strongest(scores: Sequence[float], among: Sequence[bool], count: int) -> list[bool]:
    """Choose the ``count`` highest of the allowed ones; of equals the first."""
    allowed = sorted((i for i, ok in enumerate(among) if ok), key=lambda i: (-scores[i], i))
    return [i in allowed[:count] for i in range(len(scores))]


def block_parameters(*, channels: tuple[int, int, int], kept_inside: int, projected: bool) -> int:
    """Count the parameters a path uses of a basic block: two 3x3 convolutions, batch norms, perhaps a projection.

    Args:
        channels: of the input, inside and of the output.
        kept_inside: channels that the path keeps inside.
        projected: whether the shortcut is a 1x1 convolution with a batch norm.
    """
    before, _, after = channels
    first = kept_inside * before * 9 + 2 * kept_inside
    second = after * kept_inside * 9 + 2 * after
    return first + second + (after * before + 2 * after if projected else 0)


def keep_pattern(rows: Sequence[Sequence[float]], *, n: int, count: int) -> list[list[bool]]:
    """Keep the ``n`` highest of each row; then, of all others, the highest until ``count`` are kept."""
    keep = [strongest(row, [True] * len(row), n) for row in rows]
    others = [(-row[i], r, i) for r, row in enumerate(rows) for i in range(len(row)) if not keep[r][i]]
    for _, r, i in sorted(others)[: count - n * len(rows)]:
        keep[r][i] = True
    return keep


def blocks(weight: np.ndarray, keep_in: Sequence[bool], m: int) -> list[list[float]]:
    """List each filter's and kernel position's values in blocks of ``m`` consecutive kept input channels.

    As TensorRT's developer guide checks 2:4: for k, for r, for s, for c_packed. What is left over is in no block.
    """
    kept = [c for c, keep in enumerate(keep_in) if keep]
    found = []
    for k in range(weight.shape[0]):
        for place in np.ndindex(*weight.shape[2:]):
            starts = range(0, len(kept) - m + 1, m)
            found += [[weight[(k, c, *place)] for c in kept[start : start + m]] for start in starts]
    return found
