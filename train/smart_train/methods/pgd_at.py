"""Adversarial training (Madry et al. 2018, arXiv 1706.06083): one path, which sees adversarial images alone."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  # the field's name for it

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.passes import Pass
from smart_train.methods.interface import Batch, Forward, Method, PathSpec, StepLoss, Training

ROBUST = "robust"


class PgdAt(Training):
    """CE(path, attacked batch)."""

    def loss(self, batch: Batch, attack: Attack, forward: Forward) -> StepLoss:
        """See the class."""
        path = self.net.path(ROBUST)
        with attack_mode(path):
            adversarial = attack.run(path, batch.images, batch.labels, generator=batch.generator)
        (out,) = forward([Pass(ROBUST, adversarial)])
        loss = F.cross_entropy(out.scores.float(), batch.labels)
        return StepLoss(loss, {ROBUST: loss.detach()})


PGD_AT = Method(
    name="pgd-at",
    summary="one path that learns from adversarial images alone",
    reference="Madry et al. 2018, arXiv 1706.06083",
    paths=(PathSpec(ROBUST, Role.BOTH),),
    build=PgdAt.build,
    default_density=1.0,
)
