"""One mask for all paths, closed as ``gradual`` closes them."""

from __future__ import annotations

import torch
from torch import Tensor

from smart_train.masking.mode import Masks
from smart_train.masking.modes.gradual import Gradual


class Shared(Gradual):
    """As ``gradual``, by the sum of all paths' scores, those of each path with a mean of 1: one mask at all times."""

    name = "shared"
    summary = "one mask for all paths, closed as gradual by the scores of all"
    origin = "smart-edge's own: the control for masks that differ"
    least_paths = 2

    def worth(self, masks: Masks, path: str, place: int) -> Tensor:  # noqa: ARG002  # the same for all paths
        """See the class."""
        scores = [masks.scores(path, place) for path in masks.paths]
        return torch.stack([one / one.mean().clamp(min=torch.finfo(one.dtype).tiny) for one in scores]).sum(dim=0)
