"""Remove channels from a plain network along whole groups."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from smart_train.groups import Group


def axis_length(module: nn.Module, side: str) -> int:
    """Return how many channels ``module`` has on its ``in`` or ``out`` side."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels if side == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    if isinstance(module, nn.BatchNorm2d):
        return module.num_features
    raise TypeError(f"a {type(module).__name__} has no channels of its own")


def is_depthwise(module: nn.Module | None) -> bool:
    """Whether ``module`` is a convolution with one filter for each of its channels."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def kept_channels(
    modules: Mapping[str, nn.Module], groups: Sequence[Group], keeps: Sequence[Tensor]
) -> dict[tuple[str, str], Tensor]:
    """Return, for every (module name, side) that a group touches, which channels stay: bool (channels,).

    Args:
        modules: the network's modules by name.
        groups: the groups, in the order of ``keeps``.
        keeps: bool (group size,) a group.
    """
    kept: dict[tuple[str, str], Tensor] = {}
    for group, keep in zip(groups, keeps, strict=True):
        for member in group.members:
            sides = ("in", "out") if member.axis == "channel" else (member.axis,)
            for side in sides:
                length = axis_length(modules[member.module], side)
                mask = kept.setdefault((member.module, side), torch.ones(length, dtype=torch.bool))
                mask[member.indices[~keep.cpu()]] = False
    return kept


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())


def _slice_(module: nn.Module, *, keep_in: Tensor | None, keep_out: Tensor | None) -> None:
    if isinstance(module, nn.BatchNorm2d):
        assert keep_out is not None
        module.num_features = int(keep_out.sum())
        module.weight = _parameter(module.weight[keep_out])
        module.bias = _parameter(module.bias[keep_out])
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean = module.running_mean[keep_out].clone()
        module.running_var = module.running_var[keep_out].clone()
        return
    assert isinstance(module, nn.Conv2d | nn.Linear)
    weight = module.weight
    if keep_out is not None:
        weight = weight[keep_out]
        if module.bias is not None:
            module.bias = _parameter(module.bias[keep_out])
    if isinstance(module, nn.Conv2d) and module.groups > 1:  # depthwise: one input channel a filter
        assert keep_out is not None
        module.groups = module.in_channels = module.out_channels = int(keep_out.sum())
        module.weight = _parameter(weight)
        return
    if keep_in is not None:
        weight = weight[:, keep_in]
    module.weight = _parameter(weight)
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = weight.shape[:2]
    else:
        module.out_features, module.in_features = weight.shape


def slice_network(network: nn.Module, groups: Sequence[Group], keeps: Sequence[Tensor]) -> nn.Module:
    """Return a copy of a plain ``network`` with only the channels that ``keeps`` names in each group.

    Args:
        network: Conv2d, Linear and BatchNorm2d as torch ships them; masks must be multiplied in before.
        groups: where the channels live.
        keeps: bool (group size,) a group.
    """
    result = copy.deepcopy(network)
    modules = dict(result.named_modules())
    kept = kept_channels(modules, groups, keeps)
    for name in dict.fromkeys(name for name, _ in kept):
        _slice_(modules[name], keep_in=kept.get((name, "in")), keep_out=kept.get((name, "out")))
    return result
