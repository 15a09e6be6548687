"""The masks of channels while they move: what each channel is worth, and how many stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.masking.layers import Expert, expert_at, weight_at
from smart_train.masking.mode import MaskMode, Masks
from smart_train.masking.network import SmartNetwork
from smart_train.masking.plan import MOMENTUM, MaskPlan, gradual_count, strongest
from smart_train.masking.wanted import Wanted, readers


class ChannelMasks(Masks):
    """The channel masks of every path of ``net``; a place is a group.

    Args:
        net: says how many channels of each group are kept.
        plan: the score.
        mode: what moves them.
        wanted: what paths want back, where ``mode`` brings anything back.
        generator: of random starts, on the CPU.
        from_weights: start from the magnitudes of weights that were trained before, and not at random.
    """

    def __init__(
        self,
        net: SmartNetwork,
        *,
        plan: MaskPlan,
        mode: MaskMode,
        wanted: Wanted | None,
        generator: torch.Generator,
        from_weights: bool,
    ) -> None:
        self.paths, self.places = net.path_names, len(net.groups)
        self._net, self._mode, self._wanted = net, mode, wanted
        self._generator, self._from_weights = generator, from_weights
        self._by_gradient = plan.score == "gradient"
        device = next(net.parameters()).device
        # Running means of the absolute gradient of each gate.
        self._absolute = {p: [torch.zeros(g.size, device=device) for g in net.groups] for p in net.path_names}

    def mask(self, path: str, place: int) -> Tensor:
        """Return a mask, bool (size,)."""
        return self._net.mask(path, place)

    def first(self, path: str, place: int) -> Tensor:
        """Return magnitudes, or all different numbers in a random order."""
        if self._from_weights:
            return magnitude(self._net, path, place)
        size = self._net.groups[place].size
        order = torch.randperm(size, generator=self._generator)
        scores = torch.empty(size)
        scores[order] = torch.arange(size, 0, -1.0)
        return scores.to(self._absolute[path][place].device)

    def scores(self, path: str, place: int) -> Tensor:
        """Return the running mean of |dL/dm|, or the magnitude."""
        return self._absolute[path][place] if self._by_gradient else magnitude(self._net, path, place)

    def keep(self, path: str, place: int, scores: Tensor) -> None:
        """Keep the channels with the highest scores, as many as the structure says."""
        self._net.set_mask(path, place, strongest(scores, count=self._net.kept[place]))

    def shrink(self, path: str, place: int, progress: float, *, by: Callable[[str, int], Tensor]) -> None:
        """Drop the lowest of the channels that are there still: none comes back."""
        count = gradual_count(self._net.groups[place].size, target=self._net.kept[place], progress=progress)
        mask = self.mask(path, place)
        if count < int(mask.sum()):
            self._net.set_mask(path, place, strongest(by(path, place), among=mask, count=count))

    def replace(self, path: str, place: int, rate: float) -> None:
        """Replace ``rate`` of the kept channels, rounded down."""
        assert self._wanted is not None, "only a mode that brings something back replaces"
        mask = self.mask(path, place)
        kept = int(mask.sum())
        moved = min(int(rate * kept), mask.numel() - kept)
        survivors = strongest(self.scores(path, place), among=mask, count=kept - moved)
        grown = strongest(self._wanted.of_channels(path, place), among=~survivors, count=moved)
        self._net.set_mask(path, place, survivors | grown)

    @torch.no_grad()
    def clear_(self, place: int, which: Tensor, *, optimizer: torch.optim.Optimizer) -> None:
        """Set the weights that read ``which`` channels to zero; the filters that make them stay, and pass gradients."""
        network = self._net.path(self.paths[0]).network
        for name, indices in readers(self._net, place).items():
            weight = weight_at(network, name)
            columns = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
            columns[indices.to(weight.device)[which].flatten()] = True
            clear_(weight, columns.view(1, -1, *[1] * (weight.dim() - 2)), optimizer=optimizer)

    def watch(self, moving: bool) -> None:
        """Put fresh gates on every masked layer, or take them off where no score needs them; call it after each move.

        A gate copies its mask when it is made.
        """
        for path in self.paths:
            for layer in _masked_layers(self._net, path):
                layer.watch_gate(moving and (self._mode.leak > 0 or self._by_gradient), floor=self._mode.leak)

    def after_backward(self) -> None:
        """Take in the gate gradients of this step."""
        for path in self.paths:
            network = self._net.path(path).network
            for i, group in enumerate(self._net.groups if self._by_gradient else ()):
                gradient = torch.zeros_like(self._absolute[path][i])
                for point in group.points:
                    layer = expert_at(network, point.layer)
                    if layer.gate is None or layer.gate.grad is None:
                        continue
                    for member in group.members_at(point.layer):
                        gradient += layer.gate.grad[member.indices.to(gradient.device)].sum(dim=1)
                # With 16-mixed a step whose scaled loss overflows is skipped: its infinities must not stay here.
                gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
                self._absolute[path][i].mul_(MOMENTUM).add_(gradient.abs(), alpha=1 - MOMENTUM)
            for layer in _masked_layers(self._net, path):
                if layer.gate is not None:
                    layer.gate.grad = None

    def state(self) -> dict[str, Any]:
        """Return what resuming needs beside the masks themselves."""
        return self._absolute

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        for path, i in self.each:
            self._absolute[path][i].copy_(state[path][i])


def _masked_layers(net: SmartNetwork, path: str) -> list[Expert]:
    return [m for m in net.path(path).modules() if isinstance(m, Expert) and m.mask is not None]


def clear_(weight: Tensor, which: Tensor, *, optimizer: torch.optim.Optimizer) -> None:
    """Set a weight where ``which`` (bool, broadcast) is true, and what the optimiser keeps of it, to zero, in place."""
    kept = optimizer.state.get(weight, {}).values()
    for tensor in (weight, *(value for value in kept if isinstance(value, Tensor) and value.shape == weight.shape)):
        tensor.masked_fill_(which, 0.0)


@torch.no_grad()
def magnitude(net: SmartNetwork, path: str, group: int) -> Tensor:
    """Return filter norm times the path's batch-norm scale for each channel of a group, summed over its points.

    The norm is over all input channels, those that the path itself has dropped included.
    """
    found = net.groups[group]
    network = net.path(path).network
    device = next(net.parameters()).device
    total = torch.zeros(found.size, device=device)
    for point in found.points:
        scale = weight_at(network, point.layer)
        strength = torch.ones(len(scale), device=device)
        if point.producer is not None:
            strength = weight_at(network, point.producer).flatten(1).float().norm(dim=1)
        if isinstance(network.get_submodule(point.layer), nn.BatchNorm2d):
            strength = strength * scale.abs()
        for member in found.members_at(point.layer):
            total += strength[member.indices.to(device)].sum(dim=1)
    return total
