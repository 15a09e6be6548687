"""What every training method takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from smart_train.attacks import Attack
from smart_train.masking.network import SmartNetwork

Forward = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class StepLoss:
    """The loss to minimise (a scalar with gradient), and what each path contributed (scalars without)."""

    total: Tensor
    paths: dict[str, Tensor]


class Method(Protocol):
    """Turns a batch into a loss."""

    def __call__(
        self,
        net: SmartNetwork,
        forward: Forward,
        images: Tensor,
        labels: Tensor,
        *,
        attack: Attack,
        generator: torch.Generator,
    ) -> StepLoss:
        """Return the loss on ``images`` (N, C, H, W) in [0, 1] with ``labels`` (N,).

        ``forward`` is ``net`` as the trainer wrapped it (precision, data parallel); attacks use ``net`` itself.
        """
