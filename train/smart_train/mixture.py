"""The mix of two paths as a network: what a deployed mix is verified against, and what attacks on it follow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from smart_common.roles import Role, clean_and_attacked
from smart_train.errors import ConfigError


class Mixture(nn.Module):
    """Images (N, C, H, W) to log((1 - share) softmax(first / T_first) + share softmax(second / T_second)).

    As `smart_runtime.together.mixed` computes it. Its scores (N, classes) have gradients to the images through both
    networks, which are used and not copied.
    """

    def __init__(self, first: nn.Module, second: nn.Module, *, share: float, temperatures: tuple[float, float]) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.share = share
        self.temperatures = temperatures

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mixed probabilities."""
        one, other = (
            torch.log_softmax(network(images) / temperature, dim=1)
            for network, temperature in zip((self.first, self.second), self.temperatures, strict=True)
        )
        return torch.logaddexp(one + math.log1p(-self.share), other + math.log(self.share))


def mix_name(share: float) -> str:
    """Return what the mix with this share of the robust path is called, such as ``mix-50``.

    Raises:
        ConfigError: the share is not a whole percent from 0.01 to 0.99.
    """
    percent = round(100 * share) if math.isfinite(100 * share) else 0
    if not 1 <= percent <= 99 or abs(percent - 100 * share) > 1e-6:
        raise ConfigError(f"expected a share in whole percents, 0.01 to 0.99, for a mix, got {share:g}; 0.5 is halfway")
    return f"mix-{percent}"


def mixed_paths(roles: Mapping[str, Role]) -> tuple[str, str]:
    """Return the path for clean images and that for attacked ones, of paths with these roles: a mix lies between them.

    Raises:
        ConfigError: there are no two such paths.
    """
    pair = clean_and_attacked(roles)
    if pair is None:
        raise ConfigError(
            f"a mix lies between a path for clean images and one for attacked ones, and there are {', '.join(roles)}"
        )
    return pair
