"""MART (Wang et al. 2020, ICLR): TRADES' idea, with more weight on images that the network gets wrong when clean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F  # noqa: N812  # the field's name for it

from smart_common.roles import Role
from smart_train.attacks import Attack, gaussian_start
from smart_train.errors import ConfigError
from smart_train.masking.passes import Out, Pass
from smart_train.methods.interface import Batch, Method, PathSpec, Step, StepLoss, Training, attacked

ROBUST = "robust"

# As in the authors' released code: they keep the logarithm finite, and the weight of a certain answer above zero.
_WRONG, _WEIGHT = 1.0001, 1.0000001


@dataclass(frozen=True)
class MartOptions:
    """Options of MART; raises ConfigError if one is out of range."""

    beta: float = field(default=6.0, metadata={"help": "how much the divergence counts, 0 or more"})

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ConfigError(f"expected a finite beta of 0 or more, got {self.beta}; 5 and 6 are usual")


class Mart(Training):
    """BCE(q', y) + beta mean of KL(q || q') (1 - q[y]), q of the clean and q' of the attacked batch, with gradients.

    BCE is the cross-entropy of q' and -log(1 - the largest q' of a wrong class). The attack is on the cross-entropy,
    from a Gaussian start.
    """

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        adversarial = attacked(self.net.path(ROBUST), batch, attack, start=gaussian_start)
        own = batch.labels.unsqueeze(1)

        def loss(outs: Sequence[Out]) -> StepLoss:
            clean, robust = (out.scores.float().log_softmax(dim=1) for out in outs)
            wrong = robust.exp().scatter(1, own, 0.0).amax(dim=1)
            boosted = F.nll_loss(robust, batch.labels) - (_WRONG - wrong).log().mean()
            apart = F.kl_div(robust, clean, reduction="none", log_target=True).sum(dim=1)
            missed = _WEIGHT - clean.exp().gather(1, own).squeeze(1)
            weighted = (apart * missed).mean()
            return StepLoss(
                boosted + self.options.beta * weighted,
                {"boosted_cross_entropy": boosted.detach(), "divergence": weighted.detach()},
            )

        return Step([Pass(ROBUST, batch.images), Pass(ROBUST, adversarial)], loss)


MART = Method(
    name="mart",
    summary="one path that learns under attack, most from images that it misclassifies without one",
    reference="Wang et al. 2020, ICLR, Improving adversarial robustness requires revisiting misclassified examples",
    paths=(PathSpec(ROBUST, Role.BOTH),),
    build=Mart.build,
    forwards=lambda steps: 2 * steps + 6,
    options=MartOptions,
    default_density=1.0,
    defaults={"steps": 10},
    soft_targets=False,
)
