"""Zeros and n:m groups of a weight, and the products that a layer takes, counted one by one in plain loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np


def zeros(weight: np.ndarray[Any, Any]) -> int:
    """Count the numbers that equal zero."""
    return sum(1 for value in weight.reshape(-1).tolist() if value == 0)


def groups_of(weight: np.ndarray[Any, Any], *, axis: int, m: int, groups: int = 1) -> Iterator[list[float]]:
    """Yield every m consecutive numbers along ``axis``, a group of channels at a time, and what is left over."""
    others = [range(length) for i, length in enumerate(weight.shape) if i != axis]
    size = weight.shape[axis] // groups
    for place in product(*others):
        for group in range(groups):
            for start in range(0, size, m):
                channels = range(group * size + start, group * size + min(start + m, size))
                yield [float(weight[(*place[:axis], channel, *place[axis:])]) for channel in channels]


def violations(weight: np.ndarray[Any, Any], *, axis: int, n: int, m: int, groups: int = 1) -> int:
    """Count the groups of m that have more than n non-zeros."""
    return sum(
        1 for group in groups_of(weight, axis=axis, m=m, groups=groups) if sum(value != 0 for value in group) > n
    )


def convolution_macs(
    *, channels: tuple[int, int], sides: Sequence[int], kernel: Sequence[int], groups: int, transposed: bool = False
) -> int:
    """Count the products of a convolution for one image, those with the padding too.

    Args:
        channels: in and out.
        sides: of what it writes, or of what it reads if it is transposed: there every input meets the whole kernel.
        kernel: its sides.
        groups: of channels.
        transposed: whether it is.
    """
    count = 0
    for _ in product(*map(range, sides)):
        for group in range(groups):
            reads = range(group * channels[0] // groups, (group + 1) * channels[0] // groups)
            writes = range(group * channels[1] // groups, (group + 1) * channels[1] // groups)
            count += len(reads) * len(writes) * len(list(product(*map(range, kernel))))
    return count
