"""How many of each class a stratified choice takes, by trying."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction


def distance(taken: Sequence[int], sizes: Sequence[int]) -> Fraction:
    """Return the sum of squared distances of ``taken`` from the proportions of ``sizes``, exactly."""
    share = Fraction(sum(taken), sum(sizes))
    return sum(((number - size * share) ** 2 for number, size in zip(taken, sizes, strict=True)), Fraction(0))


def bounds(sizes: Sequence[int], *, count: int, leave_one: bool = False) -> list[range]:
    """Return what may be taken of each class: one or more and, with ``leave_one``, not all, if that can be."""
    spare = 1 if leave_one and count <= sum(sizes) - len(sizes) else 0
    most = [size - spare for size in sizes]
    least = [min(number, 1) for number in most]
    if sum(least) > count:
        least = [0] * len(sizes)
    return [range(low, high + 1) for low, high in zip(least, most, strict=True)]


def least_distance(sizes: Sequence[int], *, count: int, leave_one: bool = False) -> Fraction:
    """Return the least distance of all choices within the bounds; for a few small classes."""
    choices = itertools.product(*bounds(sizes, count=count, leave_one=leave_one))
    return min(distance(taken, sizes) for taken in choices if sum(taken) == count)


def why_not_nearest(taken: Sequence[int], sizes: Sequence[int]) -> str:
    """Say which image of one class should have been one of another, "" for none: then no other choice is nearer.

    The distance is a sum of convex functions of one class each, so that what no exchange mends is the least of all.
    """
    allowed = bounds(sizes, count=sum(taken))
    for i, (number, may) in enumerate(zip(taken, allowed, strict=True)):
        if number not in may:
            return f"{number} of {sizes[i]} in class {i}, which may have {may}"
    for i, j in itertools.permutations(range(len(sizes)), 2):
        other = [number + (k == j) - (k == i) for k, number in enumerate(taken)]
        if other[i] in allowed[i] and other[j] in allowed[j] and distance(other, sizes) < distance(taken, sizes):
            return f"class {j} should have one of class {i}: {taken} of {sizes}"
    return ""
