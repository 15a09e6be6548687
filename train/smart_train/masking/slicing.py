"""Remove channels from a plain network along whole groups."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from smart_train.masking.groups import Group
from smart_train.masking.parts import Part, axis_length, parameter_axis, parts


def kept_channels(
    modules: Mapping[str, Part], groups: Sequence[Group], keeps: Sequence[Tensor]
) -> dict[tuple[str, str], Tensor]:
    """Return, for every (module name, side) that a group touches, which channels stay: bool (channels,).

    Args:
        modules: what to look at of the network's :func:`parts`, by name; what a group has elsewhere is left out.
        groups: the groups, in the order of ``keeps``.
        keeps: bool (group size,) a group.
    """
    kept: dict[tuple[str, str], Tensor] = {}
    for group, keep in zip(groups, keeps, strict=True):
        for member in group.members:
            if member.module not in modules:
                continue
            sides = ("in", "out") if member.axis == "channel" else (member.axis,)
            for side in sides:
                length = axis_length(modules[member.module], side)
                mask = kept.setdefault((member.module, side), torch.ones(length, dtype=torch.bool))
                mask[member.indices[~keep.cpu()]] = False
    return kept


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())


def _slice_(module: nn.Module, *, keep_in: Tensor | None, keep_out: Tensor | None) -> None:
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        assert keep_out is not None
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if tensor is not None:
                kept = tensor[keep_out]
                setattr(module, name, _parameter(kept) if isinstance(tensor, nn.Parameter) else kept)
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = (int(keep_out.sum()),)
        else:
            module.num_features = int(keep_out.sum())
        return
    assert isinstance(module, nn.Conv2d | nn.Linear)
    weight = module.weight
    if keep_out is not None:
        weight = weight[keep_out]
        if module.bias is not None:
            module.bias = _parameter(module.bias[keep_out])
    if isinstance(module, nn.Conv2d) and module.groups > 1:  # whole filter groups, of one channel each if depthwise
        module.groups = module.groups * weight.shape[0] // module.out_channels
    elif keep_in is not None:
        weight = weight[:, keep_in]
    module.weight = _parameter(weight)
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    else:
        module.out_features, module.in_features = weight.shape


def _slice_parameter_(network: nn.Module, name: str, keep: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    parameter = network.get_parameter(name)
    axis = parameter_axis(parameter)
    kept = parameter if axis is None else parameter.index_select(axis, torch.nonzero(keep).flatten())
    setattr(network.get_submodule(owner), attribute, _parameter(kept))


def slice_network(network: nn.Module, groups: Sequence[Group], keeps: Sequence[Tensor]) -> nn.Module:
    """Return a copy of a plain ``network`` with only the channels that ``keeps`` names in each group.

    Args:
        network: a plain network; masks must be multiplied in before.
        groups: where the channels live.
        keeps: bool (group size,) a group.
    """
    result = copy.deepcopy(network)
    slice_network_(result, groups, keeps)
    return result


def slice_network_(network: nn.Module, groups: Sequence[Group], keeps: Sequence[Tensor]) -> None:
    """Do what :func:`slice_network` does to ``network`` itself."""
    found = parts(network)
    kept = kept_channels(found, groups, keeps)
    for name in dict.fromkeys(name for name, _ in kept):
        part = found[name]
        if isinstance(part, nn.Parameter):
            _slice_parameter_(network, name, kept[name, "out"])
        else:
            _slice_(part, keep_in=kept.get((name, "in")), keep_out=kept.get((name, "out")))
