"""Which masked channels and weights a path wants back, by the gradients of the weights that it computes with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smart_train.masking.layers import Expert, expert_at, weight_at
from smart_train.masking.network import SmartNetwork
from smart_train.masking.plan import MOMENTUM
from smart_train.masking.weight_masks import kept_inputs


class Wanted:
    """Running sums of dL/dW, W the weight of a layer as a path computes with it: times the mask of single weights.

    That gradient is there where the mask is zero too, and needs no weight of another value than zero. Of a masked
    channel it is that of the weights which read it: what the channel lets through (`MaskMode.leak`) is divided out,
    as if it were whole while they are zero. DNR ranks by the same (dense momentum, and its norm over a channel).

    Args:
        net: its channels and single weights are looked at; not what layers with code of their own read, whose gradients
            by path are not to be had.
        leak: what a masked channel lets through, above 0.
    """

    def __init__(self, net: SmartNetwork, *, leak: float) -> None:
        self._net = net
        self._leak = leak
        self._readers = [readers(net, i) for i in range(len(net.groups))]
        layers = dict.fromkeys([*(name for found in self._readers for name in found), *net.weight_layers])
        network = net.path(net.path_names[0]).network
        self._layers = [name for name in layers if isinstance(network.get_submodule(name), Expert)]
        self._sums = {
            path: {name: torch.zeros_like(weight_at(network, name)) for name in self._layers} for path in net.path_names
        }
        self._let_through: dict[str, dict[str, Tensor]] = {}  # by path and layer, of each input channel

    def watch(self, moving: bool) -> None:
        """Take in gradients while masks are ``moving``; call it after each move."""
        for path in self._net.path_names:
            network = self._net.path(path).network
            for name in self._layers:
                expert_at(network, name).watch_effective(moving)
            kept = kept_inputs(
                self._layers,
                modules=dict(network.named_modules()),
                groups=self._net.groups,
                keeps=self._net.masks(path),
            )
            self._let_through[path] = {
                name: torch.where(keep, 1.0, self._leak).to(self._sums[path][name].device)
                for name, keep in kept.items()
            }

    def after_backward(self) -> None:
        """Take in the gradients of this step."""
        for path, sums in self._sums.items():
            network = self._net.path(path).network
            for name, total in sums.items():
                gradient = expert_at(network, name).take_effective_gradient()
                if gradient is None:
                    continue
                through = self._let_through[path][name]
                if gradient.shape[1] == len(through):  # of a grouped convolution no channel is looked at
                    gradient = gradient / through.view(1, -1, *[1] * (gradient.dim() - 2))
                # With 16-mixed a step whose scaled loss overflows is skipped: its infinities must not stay here.
                total.mul_(MOMENTUM).add_(gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))

    def of_weights(self, path: str, layer: str) -> Tensor:
        """Return how much a path wants each weight of a layer, in the weight's shape."""
        return self._sums[path][layer].abs()

    def of_channels(self, path: str, group: int) -> Tensor:
        """Return how much a path wants each channel of a group, (size,): the norm over all weights that read it."""
        device = next(self._net.parameters()).device
        total = torch.zeros(self._net.groups[group].size, device=device)
        for name, indices in self._readers[group].items():
            if name in self._layers:
                squares = self._sums[path][name].square().movedim(1, 0).flatten(1).sum(dim=1)
                total += squares[indices.to(device)].sum(dim=1)
        return total.sqrt()

    def state(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return self._sums

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        for path, sums in self._sums.items():
            for name, total in sums.items():
                total.copy_(state[path][name])


def readers(net: SmartNetwork, group: int) -> dict[str, Tensor]:
    """Return the layers whose filters each read all channels of a group, with the positions of its channels there.

    Positions are int64 (size, r). Grouped convolutions are left out: they are within a group and not behind it.
    """
    network = net.path(net.path_names[0]).network
    found: dict[str, Tensor] = {}
    for member in net.groups[group].members:
        layer = dict(network.named_modules()).get(member.module)
        if member.axis != "in" or not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            continue
        known = found.get(member.module)
        found[member.module] = member.indices if known is None else torch.cat([known, member.indices], dim=1)
    return found
