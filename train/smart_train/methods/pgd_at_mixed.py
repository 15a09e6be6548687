"""Adversarial training on clean and attacked images (Goodfellow et al. 2015, arXiv 1412.6572, section 6).

The baseline that OAT (Wang et al. 2020, arXiv 2010.11828) calls PGD-AT: the attacked batch goes through the network
first, then the clean one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F  # noqa: N812  # the field's name for it

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.errors import ConfigError
from smart_train.masking.passes import Out, Pass
from smart_train.methods.interface import Batch, Method, PathSpec, Step, StepLoss, Training, attacked

ROBUST = "robust"


@dataclass(frozen=True)
class MixedOptions:
    """Options of the method; raises ConfigError if one is out of range."""

    share: float = field(default=0.5, metadata={"help": "how much the attacked images count, 0 to 1"})

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"expected a share from 0 to 1, got {self.share}; 0.5 is usual")


class PgdAtMixed(Training):
    """share CE(path, attacked batch) + (1 - share) CE(path, batch)."""

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        adversarial = attacked(self.net.path(ROBUST), batch, attack)

        def loss(outs: Sequence[Out]) -> StepLoss:
            robust, clean = (F.cross_entropy(out.scores.float(), batch.targets) for out in outs)
            total = self.options.share * robust + (1 - self.options.share) * clean
            return StepLoss(total, {"attacked": robust.detach(), "clean": clean.detach()})

        return Step([Pass(ROBUST, adversarial), Pass(ROBUST, batch.images)], loss)


PGD_AT_MIXED = Method(
    name="pgd-at-mixed",
    summary="one path that learns from clean images and from the same images under attack",
    reference="Goodfellow et al. 2015, arXiv 1412.6572, with PGD as in OAT, arXiv 2010.11828",
    paths=(PathSpec(ROBUST, Role.BOTH),),
    build=PgdAtMixed.build,
    forwards=lambda steps: 2 * steps + 6,
    options=MixedOptions,
    default_density=1.0,
)
