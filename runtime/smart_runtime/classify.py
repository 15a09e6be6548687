"""From scores to classes with names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """A class that a picture may be of.

    ``probability`` is the softmax of the scores, each divided by the path's temperature, in [0, 1];
    ``index`` is the place of the class in ``class_names``.
    """

    name: str
    probability: float
    index: int
    score: float


def probabilities(scores: npt.NDArray[np.float32], *, temperature: float) -> npt.NDArray[np.float64]:
    """Return softmax(scores / temperature) over the last axis, float64; ``temperature`` is above 0."""
    exponents = np.exp(
        (scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)) / temperature
    )  # shifted: no overflow
    found: npt.NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return found


def best_classes(
    scores: npt.NDArray[np.float32], class_names: Sequence[str], *, top: int, temperature: float = 1.0
) -> tuple[Prediction, ...]:
    """Return the ``top`` classes of one picture's ``scores`` (classes,), best first and of equals the earlier one."""
    likely = probabilities(scores, temperature=temperature)
    return tuple(
        Prediction(class_names[index], float(likely[index]), int(index), float(scores[index]))
        for index in np.argsort(-scores, kind="stable")[:top]
    )
