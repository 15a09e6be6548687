"""What a folded network costs, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.slicing import axis_length


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer, for one image.

    Attributes:
        name: module name inside the network.
        type: ``Conv2d`` or ``Linear``.
        in_channels, out_channels: after folding.
        dense_in_channels, dense_out_channels: before.
        padded_out_channels: how many of ``out_channels`` are zeros kept for alignment.
        macs: multiply-accumulates.
        bytes: of weights and bias in float32.
    """

    name: str
    type: str
    in_channels: int
    out_channels: int
    dense_in_channels: int
    dense_out_channels: int
    padded_out_channels: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class NetworkCost:
    """A network's layers, its parameters (layers and biases) and multiply-accumulates for one image."""

    layers: tuple[LayerCost, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)


def _macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        per_output = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        return int(output[0].numel()) * per_output
    assert isinstance(module, nn.Linear)
    return int(output[0].numel()) * module.in_features


def network_cost(
    folded: nn.Module, *, dense: nn.Module, input_shape: tuple[int, int, int], padding: Mapping[str, int] | None = None
) -> NetworkCost:
    """Measure ``folded`` by running one black image through it.

    Args:
        folded: what :func:`smart_export.fold.fold` returned.
        dense: the path it came from, whose module names it keeps.
        input_shape: channels, height, width.
        padding: zero channels kept for alignment, by module name.
    """
    layers: dict[str, LayerCost] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        before = dense.get_submodule(name)
        short = name.removeprefix("network.")

        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            layers[name] = LayerCost(
                name=short,
                type=type(module).__name__,
                in_channels=axis_length(module, "in"),
                out_channels=axis_length(module, "out"),
                dense_in_channels=axis_length(before, "in"),
                dense_out_channels=axis_length(before, "out"),
                padded_out_channels=(padding or {}).get(short, 0),
                macs=_macs(module, output) + (layers[name].macs if name in layers else 0),
                bytes=sum(p.numel() * p.element_size() for p in module.parameters()),
            )

        handles.append(module.register_forward_hook(hook))

    for name, module in folded.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            watch(name, module)
    try:
        with torch.no_grad():
            folded(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return NetworkCost(tuple(layers.values()), sum(p.numel() for p in folded.parameters()))
