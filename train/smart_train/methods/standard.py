"""Training without any attack: one path, by cross-entropy; what every robust network is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812  # the field's name for it

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.masking.passes import Out, Pass
from smart_train.methods.interface import Batch, Method, PathSpec, Step, StepLoss, Training

CLEAN = "clean"


class Standard(Training):
    """CE(path, batch)."""

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        del attack  # what its absence does to a network is what this method shows

        def loss(outs: Sequence[Out]) -> StepLoss:
            (out,) = outs
            total = F.cross_entropy(out.scores.float(), batch.targets)
            return StepLoss(total, {CLEAN: total.detach()})

        return Step([Pass(CLEAN, batch.images)], loss)


STANDARD = Method(
    name="standard",
    summary="one path that learns from clean images alone",
    reference="the usual training, without attacks",
    paths=(PathSpec(CLEAN, Role.CLEAN),),
    build=Standard.build,
    forwards=lambda _: 3,
    default_density=1.0,
)
