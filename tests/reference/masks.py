"""How many channels stay and which, in plain Python over lists."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


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
