"""Masks that start dense and close on a cubic schedule: smart-edge's own way, and the default."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smart_train.masking.mode import MaskMode, Masks, Moment
from smart_train.masking.plan import GRADUAL_BEGIN, GRADUAL_END


class Gradual(MaskMode):
    """Every mask starts dense and closes from 15% to 50% of training; then the masks are frozen.

    The schedule is the cubic one of Zhu and Gupta 2017, arXiv 1710.01878, equation 1. It is not the rule of the SMART
    paper, which could not be read: that one is nearer to ``regrow``.
    """

    name = "gradual"
    summary = "start dense, close until half of training"
    origin = "smart-edge's own, on the schedule of Zhu and Gupta (arXiv 1710.01878); not the rule of the SMART paper"
    closed = frozen = GRADUAL_END

    def move(self, masks: Masks, now: Moment, *, optimizer: torch.optim.Optimizer) -> bool:  # noqa: ARG002  # of others
        """See the class."""
        begin = GRADUAL_BEGIN * now.total
        progress = 1.0 if now.step == now.last else (now.step - begin) / (now.last - begin)
        every = 1 if masks.most_updates is None else math.ceil((now.last - begin) / masks.most_updates)
        if progress <= 0 or (now.last - now.step) % every:
            return False
        for path, place in masks.each:
            masks.shrink(path, place, progress, by=lambda p, i: self.worth(masks, p, i))
        return True

    def worth(self, masks: Masks, path: str, place: int) -> Tensor:
        """Return the scores by which a path's mask closes at a place."""
        return masks.scores(path, place)
