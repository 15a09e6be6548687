"""TRADES (Zhang et al. 2019, arXiv 1901.08573, equation 5): one path that trades clean for robust accuracy by beta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor

from smart_common.roles import Role
from smart_train.attacks import Attack, gaussian_start
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.passes import Out, Pass
from smart_train.methods.interface import Batch, Method, PathSpec, Step, StepLoss, Training, attacked

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

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        path = self.net.path(ROBUST)
        with attack_mode(path), torch.no_grad():
            reference = path(batch.images).float().softmax(dim=1)

        def divergence(scores: Tensor, _labels: Tensor) -> Tensor:
            return F.kl_div(scores.log_softmax(dim=1), reference, reduction="sum")

        adversarial = attacked(path, batch, replace(attack, restarts=1), loss=divergence, start=gaussian_start)

        def loss(outs: Sequence[Out]) -> StepLoss:
            clean, robust = (out.scores.float() for out in outs)
            natural = F.cross_entropy(clean, batch.targets)
            apart = F.kl_div(robust.log_softmax(dim=1), clean.softmax(dim=1), reduction="batchmean")
            return StepLoss(
                natural + self.options.beta * apart,
                {"cross_entropy": natural.detach(), "divergence": apart.detach()},
            )

        return Step([Pass(ROBUST, batch.images), Pass(ROBUST, adversarial)], loss)


TRADES = Method(
    name="trades",
    summary="one path that learns from clean images and to answer the same under attack",
    reference="Zhang et al. 2019, arXiv 1901.08573",
    paths=(PathSpec(ROBUST, Role.BOTH),),
    build=Trades.build,
    forwards=lambda steps: 2 * steps + 7,
    options=TradesOptions,
    default_density=1.0,
    defaults={"steps": 10},
)
