"""Masks that are sparse from the first step: each epoch the weakest go and the most wanted come (DNR)."""

from __future__ import annotations

import torch

from smart_train.masking.mode import MaskMode, Masks, Moment

REGROW_RATE = 0.5  # fraction of what is kept that is replaced at first, linear to 0 (DNR's default)


class Regrow(MaskMode):
    """Masks start random and at their density; after every epoch but the last a part of each is replaced.

    That part falls from a half to 0 at the end of training. What goes scores lowest; what comes has the largest
    running mean of dL/dW, W as the path computes with it, so that a weight of exactly zero can come back, and starts
    at zero unless another path uses it (DNR, Kundu et al. 2021, arXiv 2011.03083; every group and layer keeps its
    count, where DNR moves budgets between layers).
    """

    name = "regrow"
    summary = "sparse from the start; each epoch the weakest go and those of the largest gradient come back from zero"
    origin = "DNR (Kundu et al. 2021, arXiv 2011.03083), by authors of SMART; budgets of layers stay as they are"
    frozen = 1.0
    leak = 1e-6  # lost in the rounding of any sum, yet above zero in float16 too

    def start(self, masks: Masks) -> None:
        """See the class."""
        for path, place in masks.each:
            masks.keep(path, place, masks.first(path, place))

    def move(self, masks: Masks, now: Moment, *, optimizer: torch.optim.Optimizer) -> bool:
        """See the class."""
        if now.step % now.per_epoch or now.step >= now.last:
            return False
        before = [masks.used(place) for place in range(masks.places)]
        for path, place in masks.each:
            masks.replace(path, place, REGROW_RATE * (1 - now.step / now.last))
        for place, used in enumerate(before):
            masks.clear_(place, masks.used(place) & ~used, optimizer=optimizer)
        return True
