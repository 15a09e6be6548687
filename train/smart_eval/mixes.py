"""Mixes of two paths as smart-eval measures them: each a network of its own, attacked as the mixture that it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smart_eval.attacks.base import WithSource
from smart_eval.costs import Cost, PathCost
from smart_runtime.bundle.mixes import MixInfo
from smart_runtime.together import mixed
from smart_train.calibration import temperature_of
from smart_train.checkpoint.format import Checkpoint
from smart_train.errors import ConfigError
from smart_train.masking.network import SmartNetwork
from smart_train.mixture import Mixture, mix_name, mixed_paths

MIXED = (
    "A mix runs both of its paths: the attacker knows both, their temperatures and the share, and follows the gradient "
    "of the mixed probabilities; no attack on one path alone stands for one on the mix."
)


class MixedPaths:
    """The paths of a network, then mixes of them, under their names."""

    def __init__(self, net: SmartNetwork, mixes: Mapping[str, Mixture]) -> None:
        self._net = net
        self._mixes = mixes

    @property
    def path_names(self) -> tuple[str, ...]:
        """The paths in order, then the mixes."""
        return (*self._net.path_names, *self._mixes)

    def path(self, name: str) -> nn.Module:
        """Return the path or the mix ``name``."""
        return self._mixes[name] if name in self._mixes else self._net.path(name)

    def to(self, device: torch.device | str) -> MixedPaths:
        """Move the network, of which the mixes are made, and return itself."""
        self._net.to(device)
        return self


class GraphMix(WithSource):
    """A mix of two graphs of a bundle, computed as a device computes it; it has no gradient, as they have none."""

    def __init__(self, mix: MixInfo, paths: Mapping[str, WithSource]) -> None:
        super().__init__()
        self._mix = mix
        self._first, self._second = (paths[name] for name in mix.paths)
        sources = [path.source for path in (self._first, self._second)]
        self.source = None
        if sources[0] is not None and sources[1] is not None:
            self.source = Mixture(sources[0], sources[1], share=mix.share, temperatures=mix.temperatures)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mixed probabilities, on the images' device."""
        one, other = (path(images).cpu().numpy() for path in (self._first, self._second))
        scores = mixed(one, other, share=self._mix.share, temperatures=self._mix.temperatures)
        return torch.from_numpy(scores).to(images.device)


def mixes_of(checkpoint: Checkpoint, shares: Sequence[float]) -> dict[str, Mixture]:
    """Return the mixes of a checkpoint as smart-export makes them, with temperatures fitted on its samples.

    Raises:
        ConfigError: a share is out of range or named twice, or the checkpoint has no two paths to mix.
    """
    names = [mix_name(share) for share in shares]
    twice = next((name for name in names if names.count(name) > 1 or name in checkpoint.net.path_names), None)
    if twice is not None:
        raise ConfigError(f"--mix asks for {twice} twice, or a path is called that; name each share once")
    if not shares:
        return {}
    paths = mixed_paths({path: checkpoint.role(path) for path in checkpoint.net.path_names})
    clean, robust = (temperature_of(checkpoint, path).temperature for path in paths)
    networks = [checkpoint.net.path(path) for path in paths]
    return {
        name: Mixture(*networks, share=share, temperatures=(clean, robust))
        for name, share in zip(names, shares, strict=True)
    }


def mix_record(paths: Sequence[str], share: float, temperatures: Sequence[float]) -> dict[str, Any]:
    """Return what a report says of a mix."""
    return {"paths": list(paths), "share": share, "temperatures": list(temperatures)}


def with_mixes(cost: Cost, mixes: Mapping[str, Mapping[str, Any]]) -> Cost:
    """Return the cost of all paths with that of each mix, which is the sum of what it runs."""
    added = {}
    for name, mix in mixes.items():
        parts = [cost.paths[path] for path in mix["paths"]]
        sizes = [part.bytes for part in parts if part.bytes is not None]
        added[name] = PathCost(
            parameters=sum(part.parameters for part in parts),
            macs=sum(part.macs for part in parts),
            bytes=sum(sizes) if len(sizes) == len(parts) else None,
            dense=all(part.dense for part in parts),
        )
    return Cost(cost.stored, cost.bytes, {**cost.paths, **added})
