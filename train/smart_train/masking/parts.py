"""What a channel can live in, a layer or a free parameter, and along which axis."""

from __future__ import annotations

from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

Part: TypeAlias = "nn.Module | nn.Parameter"
"""What a channel can live in: a layer, or a parameter that no layer of torch's own holds (a layer scale, say)."""


def parts(network: nn.Module) -> dict[str, Part]:
    """Return the modules of ``network`` and its parameters, by name."""
    return {**dict(network.named_modules()), **dict(network.named_parameters())}


def parameter_axis(parameter: nn.Parameter) -> int | None:
    """Return the one axis of a free parameter that is longer than 1, where its channels are; None if there is none."""
    long = [axis for axis, length in enumerate(parameter.shape) if length > 1]
    return long[0] if len(long) == 1 else None


def axis_length(part: Part, side: str) -> int:
    """Return how many channels ``part`` has on its ``in`` or ``out`` side."""
    if isinstance(part, nn.Conv2d):
        return part.in_channels if side == "in" else part.out_channels
    if isinstance(part, nn.Linear):
        return part.in_features if side == "in" else part.out_features
    if isinstance(part, nn.BatchNorm2d):
        return part.num_features
    if isinstance(part, nn.LayerNorm):
        return part.normalized_shape[-1]
    if isinstance(part, nn.Parameter):
        return part.numel()
    raise TypeError(f"a {type(part).__name__} has no channels of its own")


def is_depthwise(module: object) -> bool:
    """Whether ``module`` is a convolution with one filter for each of its channels."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def is_grouped(module: object) -> TypeGuard[nn.Conv2d]:
    """Whether ``module`` is a convolution whose filters read a share of the channels each, but no depthwise one."""
    return isinstance(module, nn.Conv2d) and module.groups > 1 and not is_depthwise(module)


def has_plain_inputs(module: object) -> bool:
    """Whether ``module`` is a linear layer or a convolution, or a subclass of one, each of whose filters reads all."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def has_whole_filter_groups(convolution: nn.Conv2d, *, inputs: Tensor, outputs: Tensor) -> bool:
    """Whether each row of ``inputs`` and ``outputs`` (int64, (rows, any)) is whole filter groups, the same in both."""

    def counts(indices: Tensor, share: int) -> Tensor:
        """Return, for each row and filter group, the fraction of the group's channels that the row names."""
        zeros = torch.zeros(len(indices), convolution.groups)
        return zeros.scatter_add(1, indices // share, torch.ones(indices.shape)) / share

    read = counts(inputs, convolution.in_channels // convolution.groups)
    made = counts(outputs, convolution.out_channels // convolution.groups)
    return bool(((read == 0) | (read == 1)).all()) and torch.equal(read, made)
