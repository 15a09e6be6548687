"""Check what an engine gives before anyone takes it for scores: what a graph says of its outputs it need not keep."""

from __future__ import annotations

import math

import numpy as np

from smart_runtime.engines.engine import Scores
from smart_runtime.errors import EngineError

_FEW = 64  # numbers, from which on NumPy is the faster


def check_shape(scores: Scores, *, images: int, classes: int, name: str) -> None:
    """Raise EngineError unless ``scores`` of the graph ``name`` are (images, classes)."""
    if scores.shape != (images, classes):
        raise EngineError(
            f"the graph {name!r} gave scores of shape {scores.shape} for {images} images of {classes} classes; "
            "export the bundle again"
        )


def check_scores(scores: Scores, *, images: int, classes: int, name: str) -> None:
    """Raise EngineError unless ``scores`` of the graph ``name`` are (images, classes) and every one is finite.

    This stands behind every call, so it is quick: no call of NumPy's where scores are few.
    """
    if scores.shape == (images, classes) and _all_finite(scores):
        return
    check_shape(scores, images=images, classes=classes, name=name)
    what = "NaN" if np.isnan(scores).any() else "infinity"
    raise EngineError(
        f"the graph {name!r} gave {what} among its scores of shape {scores.shape}; a value in it is larger than its "
        "precision holds, or its weights are damaged: export the bundle again in a higher precision"
    )


def _all_finite(scores: Scores) -> bool:
    if scores.size <= _FEW:  # a sum of float64 cannot run over here, and half the time of one call of NumPy's
        return math.isfinite(sum(scores.ravel().tolist()))
    return bool(np.count_nonzero(np.isfinite(scores)) == scores.size)  # a third of the time of `all`
