"""What a folded network costs, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from smart_devices import Target
from smart_export.patterns import why_no_gain, zeros_of
from smart_export.precision import BIAS_BYTES, FP32, WEIGHT_DTYPES, Precision
from smart_train.masking.accounting import LayerStructure
from smart_train.masking.parts import axis_length


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer, for one image.

    Attributes:
        name: module name inside the network.
        type: ``Conv2d`` or ``Linear``.
        groups: of a convolution after folding, else 1.
        in_channels, out_channels, macs: channels and multiply-accumulates after folding.
        dense_in_channels, dense_out_channels, dense_macs: before.
        padded_out_channels: how many of ``out_channels`` are zeros kept for alignment.
        bytes: of weights and bias in the graph's precision; scales of int8 weights are not counted.
        structure: what masks remove in this layer: ``channel``, ``2:4`` or another n:m, ``unstructured``, or ``dense``.
        why_dense: why masks remove no more of it; None where there is nothing to say.
        weights, zeros: numbers in the weight, and how many are zero before int8 rounds small ones to zero too.
        two_four: whether at most 2 of every 4 consecutive input channels are not zero, in each filter and kernel place.
        why_not_two_four: why no engine takes the layer for sparse; None where one does.
        why_no_gain: why the target would not run it faster with 2:4; None where it is expected to, or there is
            no target.
    """

    name: str
    type: str
    groups: int
    in_channels: int
    out_channels: int
    dense_in_channels: int
    dense_out_channels: int
    padded_out_channels: int
    macs: int
    dense_macs: int
    bytes: int
    structure: str
    why_dense: str | None
    weights: int
    zeros: int
    two_four: bool
    why_not_two_four: str | None
    why_no_gain: str | None

    @property
    def kept_out_channels(self) -> int:
        """Channels that the path keeps, without those for alignment."""
        return self.out_channels - self.padded_out_channels


@dataclass(frozen=True)
class NetworkCost:
    """A network's layers, its parameters (layers and biases) and multiply-accumulates for one image."""

    layers: tuple[LayerCost, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def dense_macs(self) -> int:
        """Those of the same layers before folding."""
        return sum(layer.dense_macs for layer in self.layers)


def network_cost(
    folded: nn.Module,
    *,
    dense: nn.Module,
    input_shape: tuple[int, int, int],
    precision: Precision = FP32,
    target: Target | None = None,
    padding: Mapping[str, int] | None = None,
    structures: Mapping[str, LayerStructure] | None = None,
) -> NetworkCost:
    """Measure ``folded`` by running one black image through it.

    Args:
        folded: what :func:`smart_export.folding.fold` returned.
        dense: the path it came from, whose module names it keeps.
        input_shape: channels, height, width.
        precision: of the graph that ``folded``, which is still in float32, will become.
        target: the device whose gain from zeros is to be judged; None says nothing of it.
        padding: zero channels kept for alignment, by module name.
        structures: what masks remove of each layer, by module name; nothing by default.
    """
    applied: Counter[str] = Counter()  # how often the whole weight of a layer is, in the order in which they run

    def counting(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            # All of it is of one image, also where its first axis is not: a linear layer may get (tokens, channels).
            applied[name] += output.numel() // axis_length(module, "out")

        return module.register_forward_hook(hook)

    def cost_of(name: str) -> LayerCost:
        module, before = folded.get_submodule(name), dense.get_submodule(name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        assert isinstance(before, nn.Conv2d | nn.Linear)
        short = name.removeprefix("network.")
        masked = (structures or {}).get(short)
        op, groups = ("Conv", module.groups) if isinstance(module, nn.Conv2d) else ("Gemm", 1)
        dtype = WEIGHT_DTYPES[precision]
        channels = axis_length(module, "in"), axis_length(module, "out")
        # Of a meta tensor its shape is all there is: as if no weight were zero.
        ones = np.broadcast_to(np.float32(1), tuple(module.weight.shape))
        values: npt.NDArray[Any] = ones if module.weight.is_meta else module.weight.detach().numpy()
        zeros = zeros_of(values, op=op, axis=1, groups=groups, dtype=dtype)
        return LayerCost(
            name=short,
            type=type(module).__name__,
            groups=groups,
            in_channels=channels[0],
            out_channels=channels[1],
            dense_in_channels=axis_length(before, "in"),
            dense_out_channels=axis_length(before, "out"),
            padded_out_channels=(padding or {}).get(short, 0),
            macs=applied[name] * module.weight.numel(),
            dense_macs=applied[name] * before.weight.numel(),
            bytes=module.weight.numel() * np.dtype(dtype).itemsize
            + (0 if module.bias is None else module.bias.numel() * BIAS_BYTES[precision]),
            structure="dense" if masked is None else masked.structure,
            why_dense=(masked.reason or None) if masked is not None else None,
            weights=zeros.weights,
            zeros=zeros.zeros,
            two_four=zeros.holds,
            why_not_two_four=zeros.why_not,
            why_no_gain=None
            if target is None
            else why_no_gain(
                target, op=op, in_channels=channels[0], out_channels=channels[1], groups=groups, dtype=dtype
            ),
        )

    layers = [(name, module) for name, module in folded.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [counting(name, module) for name, module in layers]
    try:
        with torch.no_grad():
            folded(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return NetworkCost(tuple(map(cost_of, applied)), sum(p.numel() for p in folded.parameters()))
