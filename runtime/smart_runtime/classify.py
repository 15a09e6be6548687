"""From scores to classes with names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """A class that a picture may be of.

    ``probability`` is the softmax of the scores, in [0, 1]; ``index`` is the place of the class in ``class_names``.
    """

    name: str
    probability: float
    index: int
    score: float


def best_classes(scores: npt.NDArray[np.float32], class_names: Sequence[str], *, top: int) -> tuple[Prediction, ...]:
    """Return the ``top`` classes of one picture's ``scores`` (classes,), best first and of equals the earlier one."""
    exponents = np.exp(scores.astype(np.float64) - scores.max())  # softmax; the shift keeps exp from overflowing
    probabilities = exponents / exponents.sum()
    return tuple(
        Prediction(class_names[index], float(probabilities[index]), int(index), float(scores[index]))
        for index in np.argsort(-scores, kind="stable")[:top]
    )
