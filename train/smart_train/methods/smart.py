"""SMART (arXiv 2302.03523), as reconstructed from its abstract and the authors' related code (RLNet's dual-mask loop).

Half of each batch goes clean through the clean path; the other half is attacked on the robust path, in eval mode, and
goes through the robust path. Both cross-entropies count one half. The masks learn beside this, in ``learner.py``.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  # the field's name for it

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.passes import Pass
from smart_train.methods.interface import Batch, Forward, Method, PathSpec, StepLoss, Training

CLEAN, ROBUST = "clean", "robust"


class Smart(Training):
    """0.5 CE(clean path, first half) + 0.5 CE(robust path, second half under attack)."""

    def loss(self, batch: Batch, attack: Attack, forward: Forward) -> StepLoss:
        """See the class."""
        images, labels = batch.images, batch.labels
        half = len(images) // 2
        robust = self.net.path(ROBUST)
        with attack_mode(robust):
            adversarial = attack.run(robust, images[half:], labels[half:], generator=batch.generator)
        clean, attacked = forward([Pass(CLEAN, images[:half]), Pass(ROBUST, adversarial)])
        clean_loss = F.cross_entropy(clean.scores.float(), labels[:half])
        robust_loss = F.cross_entropy(attacked.scores.float(), labels[half:])
        return StepLoss(
            total=0.5 * clean_loss + 0.5 * robust_loss,
            parts={CLEAN: clean_loss.detach(), ROBUST: robust_loss.detach()},
        )


SMART = Method(
    name="smart",
    summary="a clean and a robust path with masks of their own; each learns from half of every batch",
    reference="SMART, arXiv 2302.03523",
    paths=(PathSpec(CLEAN, Role.CLEAN), PathSpec(ROBUST, Role.ATTACKED)),
    build=Smart.build,
)
