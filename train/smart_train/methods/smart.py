"""SMART (arXiv 2302.03523), as reconstructed from its abstract and the authors' related code (RLNet's dual-mask loop).

Half of each batch goes clean through the clean path; the other half is attacked on the robust path, in eval mode, and
goes through the robust path. Both cross-entropies count one half. The masks learn beside this, in ``masks.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor

from smart_train.attacks import Attack
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork
from smart_train.methods.step import Forward, StepLoss

CLEAN, ROBUST = "clean", "robust"


def smart_loss(
    net: SmartNetwork,
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
    generator: torch.Generator,
) -> StepLoss:
    """Return 0.5 CE(clean path, first half) + 0.5 CE(robust path, second half under attack); see ``Method``."""
    half = len(images) // 2
    robust = net.path(ROBUST)
    with attack_mode(robust):
        adversarial = attack.run(robust, images[half:], labels[half:], generator=generator)
    scores = forward({CLEAN: images[:half], ROBUST: adversarial})
    clean_loss = F.cross_entropy(scores[CLEAN].float(), labels[:half])
    robust_loss = F.cross_entropy(scores[ROBUST].float(), labels[half:])
    return StepLoss(
        total=0.5 * clean_loss + 0.5 * robust_loss, paths={CLEAN: clean_loss.detach(), ROBUST: robust_loss.detach()}
    )
