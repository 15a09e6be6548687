"""What the stand-in's parser and builder see in an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.numpy_helper

from trt.fake_tensorrt.plan import Tensor

NAMES = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.INT64: "INT64"}
_WEIGHTED = {"Conv", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Fault:
    """What the parser has against a graph; ``node`` is -1 where it is no node's fault."""

    code: str
    reason: str
    node: int = -1
    node_name: str = ""
    operator: str = ""


def faults(model: onnx.ModelProto) -> list[Fault]:
    """Return the first thing that cannot be parsed, as the real parser does, in a list."""
    return list(_faults(model))[:1]


def _faults(model: onnx.ModelProto) -> Iterator[Fault]:
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield Fault("INVALID_GRAPH", f"Failed to import initializer: {tensor.name}")
    for number, node in enumerate(model.graph.node):
        where = {"node": number, "node_name": node.name, "operator": node.op_type}
        if not onnx.defs.has(node.op_type):
            words = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
            yield Fault("INVALID_NODE", words, **where)
        if node.op_type == "DequantizeLinear" and kinds.get(node.input[0]) == onnx.TensorProto.INT32:
            words = "Assertion failed: INT32 is not a type that can be dequantized"
            yield Fault("UNSUPPORTED_NODE", words, **where)


def tensors(values: Any) -> tuple[Tensor, ...]:
    """Return a graph's inputs or outputs."""
    return tuple(
        Tensor(
            name=value.name,
            dtype=NAMES.get(value.type.tensor_type.elem_type, "INT32"),
            shape=tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def layer_names(model: onnx.ModelProto) -> tuple[str, ...]:
    return tuple(node.name or f"node_of_{node.output[0]}" for node in model.graph.node)


def two_four_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the layers whose weights have at most two values in four along their input channels."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for name, node in zip(layer_names(model), model.graph.node, strict=True):
        held = [weights[value] for value in node.input if value in weights]
        if node.op_type in _WEIGHTED and held:
            values = onnx.numpy_helper.to_array(held[0])
            along = np.moveaxis(values, 1 if node.op_type == "Conv" else 0, -1)
            if along.shape[-1] % 4 == 0 and (np.count_nonzero(along.reshape(-1, 4), axis=1) <= 2).all():
                found.append(name)
    return tuple(found)


def uses(model: onnx.ModelProto, precision: str) -> bool:
    """Whether a graph computes in ``FP16``, or is quantised to ``INT8``."""
    if precision == "INT8":
        return any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
