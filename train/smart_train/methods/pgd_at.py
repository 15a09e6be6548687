"""Adversarial training (Madry et al. 2018, arXiv 1706.06083): one path, which sees adversarial images alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812  # the field's name for it

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.masking.passes import Out, Pass
from smart_train.methods.interface import Batch, Method, PathSpec, Step, StepLoss, Training, attacked

ROBUST = "robust"


class PgdAt(Training):
    """CE(path, attacked batch)."""

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""

        def loss(outs: Sequence[Out]) -> StepLoss:
            (out,) = outs
            total = F.cross_entropy(out.scores.float(), batch.targets)
            return StepLoss(total, {ROBUST: total.detach()})

        return Step([Pass(ROBUST, attacked(self.net.path(ROBUST), batch, attack))], loss)


PGD_AT = Method(
    name="pgd-at",
    summary="one path that learns from adversarial images alone",
    reference="Madry et al. 2018, arXiv 1706.06083",
    paths=(PathSpec(ROBUST, Role.BOTH),),
    build=PgdAt.build,
    forwards=lambda steps: 2 * steps + 3,
    default_density=1.0,
    defaults={"steps": 10},
)
