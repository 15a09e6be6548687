"""TRADES (Zhang et al. 2019, arXiv 1901.08573, equation 5): one path that trades clean for robust accuracy by beta."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor

from smart_common.roles import Role
from smart_train.attacks import Attack, gaussian_start
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.passes import Pass
from smart_train.methods.interface import Batch, Forward, Method, PathSpec, StepLoss, Training

ROBUST = "robust"


@dataclass(frozen=True)
class TradesOptions:
    """Options of TRADES; raises ConfigError if one is out of range."""

    beta: float = field(default=6.0, metadata={"help": "how much the divergence counts, 0 or more"})

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ConfigError(f"expected a finite beta of 0 or more, got {self.beta}; 6 is usual")


class Trades(Training):
    """CE(z, y) + beta KL(softmax z || softmax z'), z of the clean and z' of the attacked batch, both with gradient.

    The attack increases the same divergence, from one Gaussian start, where the network in eval mode is the reference.
    """

    def loss(self, batch: Batch, attack: Attack, forward: Forward) -> StepLoss:
        """See the class."""
        path = self.net.path(ROBUST)
        with attack_mode(path):
            with torch.no_grad():
                reference = path(batch.images).float().softmax(dim=1)

            def divergence(scores: Tensor, _labels: Tensor) -> Tensor:
                return F.kl_div(scores.log_softmax(dim=1), reference, reduction="sum")

            adversarial = replace(attack, restarts=1).run(
                path, batch.images, batch.labels, generator=batch.generator, loss=divergence, start=gaussian_start
            )
        clean, attacked = forward([Pass(ROBUST, batch.images), Pass(ROBUST, adversarial)])
        natural = F.cross_entropy(clean.scores.float(), batch.labels)
        robust = F.kl_div(
            attacked.scores.float().log_softmax(dim=1), clean.scores.float().softmax(dim=1), reduction="batchmean"
        )
        return StepLoss(
            natural + self.options.beta * robust,
            {"cross_entropy": natural.detach(), "divergence": robust.detach()},
        )


TRADES = Method(
    name="trades",
    summary="one path that learns from clean images and to answer the same under attack",
    reference="Zhang et al. 2019, arXiv 1901.08573",
    paths=(PathSpec(ROBUST, Role.BOTH),),
    build=Trades.build,
    options=TradesOptions,
    default_density=1.0,
)
