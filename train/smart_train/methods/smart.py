"""SMART (arXiv 2302.03523), as reconstructed from its abstract and the authors' related code (RLNet's dual-mask loop).

Half of each batch goes clean through the clean path; the other half is attacked on the robust path, in eval mode, and
goes through the robust path. Both cross-entropies count one half. The masks learn beside this, in ``learner.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F  # noqa: N812  # the field's name for it

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.masking.passes import Out, Pass
from smart_train.methods.interface import Batch, Method, PathSpec, Step, StepLoss, Training, attacked

CLEAN, ROBUST = "clean", "robust"


class Smart(Training):
    """0.5 CE(clean path, first half) + 0.5 CE(robust path, second half under attack)."""

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        half = len(batch.images) // 2
        adversarial = attacked(self.net.path(ROBUST), batch, attack, part=slice(half, None))

        def loss(outs: Sequence[Out]) -> StepLoss:
            clean, robust = outs
            clean_loss = F.cross_entropy(clean.scores.float(), batch.targets[:half])
            robust_loss = F.cross_entropy(robust.scores.float(), batch.targets[half:])
            return StepLoss(
                total=0.5 * clean_loss + 0.5 * robust_loss,
                parts={CLEAN: clean_loss.detach(), ROBUST: robust_loss.detach()},
            )

        return Step([Pass(CLEAN, batch.images[:half]), Pass(ROBUST, adversarial)], loss)


SMART = Method(
    name="smart",
    summary="a clean and a robust path with masks of their own; each learns from half of every batch",
    reference="SMART, arXiv 2302.03523",
    paths=(PathSpec(CLEAN, Role.CLEAN), PathSpec(ROBUST, Role.ATTACKED)),
    build=Smart.build,
    forwards=lambda steps: steps + 3,
)

DUAL_BN = replace(
    SMART,
    name="dual-bn",
    summary="two paths that share every weight; each has batch norms of its own and no masks",
    reference="the control for SMART; dual batch norms as in Xie et al. 2020, arXiv 1911.09665",
    default_density=1.0,
    defaults={"masks": "shared"},
)
