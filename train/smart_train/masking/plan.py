"""How masks are found: what the user chooses, the schedule by which masks close, and the choice of the strongest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smart_train.choices import MASK_MODES, SCORES, Score
from smart_train.errors import ConfigError

GRADUAL_BEGIN, GRADUAL_END = 0.15, 0.5  # fractions of training between which masks close
MOMENTUM = 0.9  # of the running means of gradients


@dataclass(frozen=True)
class MaskPlan:
    """How masks are found: ``mode``, a row of ``MASK_MODES``, and the ``score`` by which channels or weights go.

    ``magnitude`` of a channel is the filter's norm times the path's batch-norm scale, of a weight its absolute value
    times the root mean square of its input on the path; ``gradient`` is the running mean of |dL/dm|.
    """

    mode: str = "gradual"
    score: Score = "magnitude"

    def __post_init__(self) -> None:
        if self.mode not in MASK_MODES:
            raise ConfigError(f"expected masks out of {', '.join(MASK_MODES)}, got {self.mode!r}; use gradual")
        if self.score not in SCORES:
            raise ConfigError(f"expected a score out of {', '.join(SCORES)}, got {self.score!r}; use magnitude")


def gradual_count(size: int, *, target: int, progress: float) -> int:
    """Return how many of ``size`` stay at ``progress`` in [0, 1] of the removal; ``target`` at 1.

    The schedule is cubic (Zhu and Gupta 2017, arXiv 1710.01878, equation 1).
    """
    removed = (size - target) * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)
    return size - int(removed + 1e-9)


def strongest(scores: Tensor, *, count: int, among: Tensor | None = None) -> Tensor:
    """Return the mask of the ``count`` highest ``scores`` (``among`` those, if given); ties go to the lower index.

    All are one-dimensional. It selects instead of sorting: a layer may have millions of weights.
    """
    among = torch.ones_like(scores, dtype=torch.bool) if among is None else among
    if count < 1:
        return torch.zeros_like(among)
    lowest = torch.finfo(scores.dtype).min
    finite = torch.nan_to_num(scores, nan=lowest, posinf=torch.finfo(scores.dtype).max, neginf=lowest)
    ranked = torch.where(among, finite, torch.full_like(finite, -torch.inf))
    threshold = ranked.kthvalue(max(len(ranked) - count, 0) + 1).values
    above = ranked > threshold
    level = (ranked == threshold) & among
    return above | (level & (level.cumsum(0) <= count - above.sum()))
