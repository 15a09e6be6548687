"""Zeros in a weight: how many, whether they follow an n:m pattern, and whether a device would gain from it.

TensorRT's rule for 2:4 ([K, C, R, S]: "for each output channel and for each spatial pixel in the kernel weights, every
four input channels must have at least two zeros", C % 4 == 0) is in its developer guide, 6.8 "Sparsity" of 8.5, today
https://docs.nvidia.com/deeplearning/tensorrt/11.1.0/inference-library/data-formats-tensors.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smart_devices import Target
from smart_devices.device_profile import SPARSE_GAIN_CHANNELS
from smart_export.errors import ExportError
from smart_train.masking.n_of_m import TWO_FOUR, NOfM

_SPARSE_OPS = ("Conv", "Gemm", "MatMul")  # the guide names convolutions and fully connected layers
_PATTERN_DTYPES = ("float32", "float16", "bfloat16", "int8")  # what a builder looks for zeros in
_FAST_DTYPES = ("float16", "bfloat16", "int8")  # what TensorRT has sparse kernels for: fp16 or int8 must be on

_MAX_M = 64


def parse_pattern(text: str) -> NOfM:
    """Return the pattern that ``text`` names; raises ExportError unless it is N:M with 0 < N < M <= 64."""
    pattern = NOfM.parse(text, max_m=_MAX_M)
    if pattern is None:
        raise ExportError(f"expected a pattern N:M with 0 < N < M <= {_MAX_M}, got {text!r}; 2:4 is what GPUs have")
    return pattern


@dataclass(frozen=True)
class Zeros:
    """What of a weight is exactly zero.

    Attributes:
        weights, zeros: how many numbers the weight has, and how many of them are zero.
        runs: how many groups of m consecutive input channels there are, over all filters and kernel positions; 0 where
            the channels do not divide into such groups.
        violations: how many of them have more than n non-zeros.
        holds: whether every group keeps to the pattern.
        why_not: why the weight is none that an engine takes for sparse; None where it is one.
    """

    weights: int
    zeros: int
    runs: int
    violations: int
    holds: bool
    why_not: str | None

    @property
    def zero_fraction(self) -> float:
        """Zeros over weights, 0 for an empty weight."""
        return self.zeros / self.weights if self.weights else 0.0


def zeros_of(
    weight: npt.NDArray[Any], *, op: str, axis: int, groups: int = 1, dtype: str = "float32", pattern: NOfM = TWO_FOUR
) -> Zeros:
    """Count the zeros of ``weight``, of any shape, and of its groups of m; -0.0 is a zero, NaN is none.

    ``axis`` is the one over which the products of ``op`` are summed up: 1 for ``Conv`` (M, C / groups, ...), 0 for
    ``ConvTranspose`` (C, M / groups, ...), that of K for ``Gemm`` and ``MatMul``. A group of m channels does not reach
    from one of the ``groups`` of a convolution into the next. The layer computes in ``dtype``.
    """
    nonzero = weight != 0
    before, channels = nonzero.shape[:axis], nonzero.shape[axis]
    if op == "ConvTranspose":
        before, channels = (groups,), channels // groups
    weights, zeros = nonzero.size, nonzero.size - int(np.count_nonzero(nonzero))
    runs = violations = 0
    divides = channels % pattern.m == 0
    if divides and nonzero.size:
        parted = nonzero.reshape(int(np.prod(before)), channels // pattern.m, pattern.m, -1)
        found = parted.sum(axis=2, dtype=np.uint8)
        runs, violations = found.size, int(np.count_nonzero(found > pattern.n))
    why_not = None
    if op not in _SPARSE_OPS:
        why_not = f"{op}: only convolutions and fully connected layers have sparse kernels"
    elif dtype not in _PATTERN_DTYPES:
        why_not = f"{dtype} weights: sparse kernels take float16, bfloat16 and int8"
    elif groups > 1 and channels == 1:
        why_not = "depthwise: each filter reads 1 channel"
    elif not divides:
        of = f" in each of {groups} groups" if groups > 1 else ""
        why_not = f"{channels} input channel{'s' if channels > 1 else ''}{of}, no multiple of {pattern.m}"
    elif violations and not zeros:
        why_not = "no zeros"
    elif violations:
        why_not = f"{violations} of {runs} groups of {pattern.m} have more than {pattern.n} non-zeros"
    return Zeros(
        weights=weights,
        zeros=zeros,
        runs=runs,
        violations=violations,
        holds=divides and not violations,
        why_not=why_not,
    )


def why_no_gain(
    target: Target,
    *,
    op: str,
    in_channels: int,
    out_channels: int,
    groups: int,
    dtype: str,
    pattern: NOfM = TWO_FOUR,
) -> str | None:
    """Return why ``target`` would not run this layer faster with ``pattern``; None where it is expected to.

    It says nothing of whether the layer's weight keeps to the pattern. What TensorRT picks in the end only its log
    tells: it times both kinds of kernels.
    """
    slow = pattern.why_slow(target)
    if slow is not None:
        return slow
    if op not in _SPARSE_OPS:
        return f"no sparse kernels for {op}"
    if groups > 1:
        return f"{groups} groups of channels"
    if min(in_channels, out_channels) < SPARSE_GAIN_CHANNELS:
        return f"too narrow: sparse kernels win from about {SPARSE_GAIN_CHANNELS} channels in and out"
    return None if dtype in _FAST_DTYPES else f"{dtype}: sparse kernels take float16, bfloat16 and int8"
