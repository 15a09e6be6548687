"""What every training method takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from smart_train.attacks import Attack
from smart_train.layers import holding
from smart_train.network import SmartNetwork

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


@contextmanager
def fixed(module: nn.Module) -> Iterator[None]:
    """Run a block with ``module`` in eval mode, its masks applied once, and no gradient to its expert layers.

    So an attack neither sees nor moves batch statistics, and pays for the input's gradient only.
    """
    was = module.training
    module.eval()
    try:
        with holding(module):
            yield
    finally:
        module.train(was)
