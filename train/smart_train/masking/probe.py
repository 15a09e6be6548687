"""The numerical probe: a group may be masked only where slicing it gives the very same network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from smart_train.masking.groups import Group, apply_mask_, may_be_padded
from smart_train.masking.layers import make_expert_, make_plain_
from smart_train.masking.slicing import slice_network_

# In float64 a correct slice agrees to rounding (1e-13 seen); a wrong one is off by orders of magnitude more.
PROBE_TOLERANCE = 1e-9


def _randomise_(network: nn.Module, generator: torch.Generator) -> None:
    """Give every layer values that no slice could get right by luck (zeros, say), in place."""

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype) * (high - low) + low

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                scale = (2 / module.weight[0].numel()) ** 0.5  # keeps the size of features through ReLUs
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator, dtype=torch.float64) * scale)
                if module.bias is not None:
                    module.bias.copy_(uniform(module.bias, -1.0, 1.0))
            elif isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -1.0, 1.0),
                    (module.running_mean, -1.0, 1.0),
                    (module.running_var, 0.5, 1.5),
                ):
                    if tensor is not None:
                        tensor.copy_(uniform(tensor, low, high))
            else:  # a layer scale that starts at 1e-6 would hide what is wrong behind it
                for parameter in module.parameters(recurse=False):
                    if parameter.is_floating_point():
                        parameter.copy_(uniform(parameter, 0.5, 1.5))


def _without_shifts(network: nn.Module) -> nn.Module:
    """Return a copy whose layers make zeros of zeros."""
    result = copy.deepcopy(network)
    for module in result.modules():
        shifts = [module.bias] if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) else []
        if isinstance(module, nn.BatchNorm2d):
            shifts.append(module.running_mean)
        for shift in shifts:
            if shift is not None:
                nn.init.zeros_(shift)
    return result


def _copied(network: nn.Module, masked: Sequence[Group]) -> nn.Module:
    """Return a copy of an expert network with parameters of its own where masks are to be multiplied in only.

    All parameters of a large network, copied for each of its groups, would take most of the time of converting it.
    """
    points = {point.layer for group in masked for point in group.points}
    own = {id(p) for name in points for p in network.get_submodule(name).parameters()}
    return copy.deepcopy(network, {id(p): p for p in network.parameters() if id(p) not in own})


class Probe:
    """Tries groups: a group may be masked only where slicing it gives the very same network.

    Args:
        network: a plain network; it is not changed. The trial copies get random values in float64.
        images: float (N, C, H, W) inputs.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._images = images.to(device="cpu", dtype=torch.float64)
        self._network = copy.deepcopy(network).to(device="cpu", dtype=torch.float64).eval()
        _randomise_(self._network, self._generator)
        make_expert_(self._network)

    @torch.no_grad()
    def difference(self, groups: Sequence[Group]) -> float:
        """Return max|a-b| / max(1, max|a|) between masking and slicing ``groups`` to random channels, half of each.

        Where that is allowed (:func:`may_be_padded`), one masked channel stays: it must compute nothing but zeros.
        """
        keeps, padded = [], []
        for group in groups:
            order = torch.randperm(group.size, generator=self._generator)
            keep = torch.zeros(group.size, dtype=torch.bool)
            keep[order[: max(1, group.size // 2)]] = True
            keeps.append(keep)
            more = keep.clone()
            if int(keep.sum()) + 1 < group.size and may_be_padded(self._network, group):
                more[order[int(keep.sum())]] = True
            padded.append(more)
        return self._difference(self._network, groups, keeps, sliced_to=padded)

    @torch.no_grad()
    def is_made_by_one(self, group: Group, *, producer: str) -> bool:
        """Whether the channels of ``group`` are zero where ``producer`` alone makes zeros of them.

        So it is in a block with squeeze-excite, where a second layer only scales them; a residual stream goes on with
        what its other layers add. Tried without all shifts, as a batch norm makes its shift of a zero.
        """
        points = tuple(point for point in group.points if producer in {point.producer, point.layer})
        if not points:
            return False
        keep = torch.arange(group.size) < max(1, group.size // 2)
        found = self._difference(
            _without_shifts(self._network), [group], [keep], sliced_to=[keep], masked=[replace(group, points=points)]
        )
        return found <= PROBE_TOLERANCE

    def _difference(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        keeps: Sequence[Tensor],
        *,
        sliced_to: Sequence[Tensor],
        masked: Sequence[Group] | None = None,
    ) -> float:
        """Compare ``network`` masked to ``keeps`` and sliced; it has no masks before and after."""
        masked = groups if masked is None else masked
        try:
            for group, keep in zip(masked, keeps, strict=True):
                apply_mask_(network, group, keep)
            expected = network(self._images)
            sliced = _copied(network, masked)
            make_plain_(sliced)
            slice_network_(sliced, groups, sliced_to)
            got = sliced(self._images)
        except Exception:  # a forward may say in its own way that shapes no longer fit: this group cannot be sliced
            return float("inf")
        finally:
            for group in masked:
                apply_mask_(network, group, torch.ones(group.size, dtype=torch.bool))
        if got.shape != expected.shape:
            return float("inf")
        return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))
