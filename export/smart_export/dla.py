"""What of a graph a Jetson's deep learning accelerators (DLA) would run, operator by operator, by NVIDIA's rules.

The numbers are those of TensorRT 10's NvInfer.h ("If executing this layer on DLA, ...": IConvolutionLayer,
IPoolingLayer, IConcatenationLayer, IActivationLayer) and of "DLA Supported Layers and Restrictions" in NVIDIA's
documentation (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/dla-layer-restrictions.html).
Which ONNX operators TensorRT hands over is NVIDIA's own table (github.com/NVIDIA/Deep-Learning-Accelerator-SW,
operators/README.md at 372cea3, for TensorRT 8.5 and 8.6), with the element-wise Div, Min and Pow that the documentation
adds. An operator that neither names is counted as one for the GPU. Two rules hold for all of a graph and are no
layer's: a DLA takes fp16 and int8 only, and one fixed batch size. Whether the compiler takes a layer in the end (it has
a buffer of its own to fit) only a board can say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from smart_devices import Target
from smart_export.layers import LayerCost

_MAX_SIDE = 8192  # of each dimension but the batch, of channels and of groups
_LAYERS = ("Conv", "Gemm", "MatMul")
_NATIVE = {
    *("Abs", "Add", "BatchNormalization", "Clip", "Constant", "Equal", "LRN", "LeakyRelu", "Max", "Mul", "PRelu"),
    *("Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Sub", "Sum", "Tanh", "Transpose"),
    *("Div", "Min", "Pow"),  # what the documentation adds to NVIDIA's table
}
_NO_OPERATOR = "not among the operators that TensorRT hands to DLA"
_TOKENS = "a product over its features' last axis, while fully connected layers on DLA take (N, C) or (N, C, H, W)"
_UNSEEN = "its weight is computed in the graph, so it was not judged"


@dataclass(frozen=True)
class DlaReport:
    """What of a graph a target's accelerators would run at fp16 or int8 with a fixed batch size.

    The target has ``cores`` of them, 0 too if nobody knows. ``why_not`` says by layer why it stays on the GPU, None
    where it need not; ``others`` does by operator, for those that are no layer and stay there.
    """

    cores: int
    why_not: Mapping[str, str | None]
    others: Mapping[str, str]

    @property
    def eligible(self) -> int:
        """How many layers need not stay on the GPU."""
        return sum(why is None for why in self.why_not.values())

    @property
    def record(self) -> dict[str, Any] | None:
        """What the manifest says of the whole graph; None where there is no accelerator."""
        if self.cores == 0:
            return None
        counts = {"cores": self.cores, "layers": len(self.why_not), "eligible_layers": self.eligible}
        return {**counts, "gpu_operators": dict(self.others)}


def dla_report(model: ir.Model, layers: Sequence[LayerCost], *, target: Target) -> DlaReport:
    """Judge a folded graph, with the shapes of its values and before any change of its precision.

    ``layers`` are those of the network it was converted from.
    """
    dla = target.profile.dla
    if dla is None or not dla.engines.value:
        why = f"{target.name} {'has no DLA' if dla is None else 'is not known to have a DLA'}"
        return DlaReport(0, {layer.name: why for layer in layers}, {})
    judged: dict[str, str | None] = {}
    others: dict[str, str] = {}
    for node in model.graph:
        found = _why_not(node)
        weight = node.inputs[1] if node.op_type in _LAYERS else None
        if weight is not None and weight.const_value is not None and weight.name is not None:
            name = weight.name.removeprefix("network.").removesuffix(".weight")
            judged[name] = judged.get(name) or found  # one that is called twice is judged by its worse call
        elif found is not None:
            others.setdefault(node.op_type, found)
    missing = {layer.name: _TOKENS if layer.type == "Linear" else _UNSEEN for layer in layers}
    return DlaReport(dla.engines.value, {name: judged.get(name, why) for name, why in missing.items()}, others)


def has_dla(target: Target) -> bool:
    """Return whether a device is known to have an accelerator."""
    return target.profile.dla is not None and bool(target.profile.dla.engines.value)


def _why_not(node: ir.Node) -> str | None:
    """Return why TensorRT would not give ``node`` to a DLA; None where it may."""
    judge = _JUDGES.get(node.op_type)
    if judge is None and node.op_type not in _NATIVE:
        return _NO_OPERATOR
    # The fixed ones; the first is the batch, or a count of filters with the same limit.
    shapes = [value.shape for value in (*node.inputs, *node.outputs) if value is not None and value.shape is not None]
    sides = [side for shape in shapes for side in shape if isinstance(side, int)]
    if any(side > _MAX_SIDE for side in sides):
        return f"a dimension of {max(sides)}, DLA takes up to {_MAX_SIDE}"
    return None if judge is None else judge(node)


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _ints(node: ir.Node, name: str, *, default: int, count: int) -> list[int]:
    return list(node.attributes.get_ints(name, [default] * count))


def _range(what: str, values: Sequence[int], low: int, high: int) -> str | None:
    if all(low <= value <= high for value in values):
        return None
    return f"{what} {'x'.join(map(str, values))}, DLA takes {low} to {high}"


def _window(node: ir.Node, kernel: Sequence[int], *, most: tuple[int, int, int]) -> str | None:
    """Judge kernel, stride and padding by the largest that are allowed."""
    pads = _ints(node, "pads", default=0, count=2 * len(kernel))
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "padding that is not written out"
    return (
        ("not two-dimensional" if len(kernel) != 2 else None)
        or _range("kernel", kernel, 1, most[0])
        or _range("stride", _ints(node, "strides", default=1, count=len(kernel)), 1, most[1])
        or _range("padding", pads, 0, most[2])
    )


def _convolution(node: ir.Node) -> str | None:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return "its weight is computed at run time"
    kernel = list(weight.const_value.shape.numpy())[2:]
    found = _window(node, kernel, most=(32, 8, 31)) or _range(
        "dilation", _ints(node, "dilations", default=1, count=len(kernel)), 1, 32
    )
    pads = _ints(node, "pads", default=0, count=2 * len(kernel))
    if found is None and any(pad >= size for pad, size in zip(pads, [*kernel, *kernel], strict=True)):
        return f"padding {'x'.join(map(str, pads))}, DLA takes less than the kernel's {'x'.join(map(str, kernel))}"
    return found


def _pooling(node: ir.Node) -> str | None:
    return _window(node, _ints(node, "kernel_shape", default=1, count=2), most=(8, 16, 7))


def _product(node: ir.Node) -> str | None:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return "its second factor is computed at run time"
    return None if _rank(node.inputs[0]) == 2 else _TOKENS


def _concat(node: ir.Node) -> str | None:
    axis, rank = node.attributes.get_int("axis", 0), _rank(node.outputs[0])
    return None if rank == 4 and axis % rank == 1 else f"joins axis {axis}, DLA joins channels only"


_JUDGES: Mapping[str, Callable[[ir.Node], str | None]] = {
    "AveragePool": _pooling,
    "Concat": _concat,
    "Conv": _convolution,
    "Gemm": _product,
    "MatMul": _product,
    "MaxPool": _pooling,
}
