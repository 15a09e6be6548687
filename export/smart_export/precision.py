"""The precisions that a graph can be exported in, and what each one means for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, cast

from smart_common.errors import alternatives
from smart_devices import PRECISIONS
from smart_export.errors import ExportError

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]

FP32: Precision = "fp32"
FP16: Precision = "fp16"
INT8: Precision = "int8"

TOLERANCE_FP32 = 1e-4  # float32 sums in another order: 1e-6 is usual, a wrong fold is far above

TOLERANCES: Mapping[Precision, float | None] = MappingProxyType({FP32: TOLERANCE_FP32, FP16: 2e-2, INT8: None})
"""What ``max_rel_diff`` may be (see `smart_runtime.reference.ParityResult`).

fp16: a product of values with 11 bits is off by 5e-4, which adds up over the layers; 3e-5 to 8e-3 were seen on 22
networks. int8: none, since it depends on how far an image is from those that were calibrated on; the accuracy gate
decides.
"""

TOLERANCE_INT8 = 0.5
"""What a check allows int8 scores to differ by, as a fraction of the largest: twice what was seen. It tells the
graph of another network; the weights tell one that was made for the images."""

ROUNDING_MARGIN, MAX_TOLERANCE = 16, 1e-2
"""What a deep network's own rounding allows: so many times its error in float32, never more than the second number,
which a batch norm left out or a wrong channel exceeds."""

MAX_DROP = 0.01
"""What a path's accuracy may drop by unless told otherwise, as a fraction: one point."""

MAX_CHECKED_DROP = 0.1
"""What an accuracy of an int8 graph may drop by in a check, beyond doubt, whatever its export allowed: a manifest only
claims what that was."""

WEIGHT_DTYPES: Mapping[Precision, str] = MappingProxyType({FP32: "float32", FP16: "float16", INT8: "int8"})
"""NumPy's name of what the weights of convolutions and linear layers are stored in."""

BIAS_BYTES: Mapping[Precision, int] = MappingProxyType({FP32: 4, FP16: 2, INT8: 4})
"""Of one number of a bias, which in int8 graphs is float32 or int32."""


def tolerance_for(precision: Precision, *, rounding: float) -> float | None:
    """Return what ``max_rel_diff`` may be of a graph whose network in float32 is off by ``rounding`` itself.

    ``rounding`` is a fraction of the largest score, between float32 and float64 (`smart_export.proof.Proof`).
    """
    tolerance = TOLERANCES[precision]
    return None if tolerance is None else max(tolerance, min(ROUNDING_MARGIN * rounding, MAX_TOLERANCE))


def check_precision(precision: str) -> Precision:
    """Return ``precision``; raises ExportError unless it is one of `smart_devices.PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {alternatives(str(precision), PRECISIONS)}")
    return cast("Precision", precision)
