"""Does a graph hold the weights of its path? Scores are compared on some images only, and a graph may know those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from torch import fx

from smart_export.errors import VerificationError
from smart_export.folding import affines_to_convolutions_
from smart_export.graph import OLDEST_WRITTEN, onnx_from_module
from smart_export.precision import FP16, FP32, INT8, Precision
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.engines.onnx_weights import external_tensors

LEAST_SHARE = 0.9
"""Of the numbers of a fold: converters of other versions may compute some of them beforehand."""

# What one number may be off by, as a fraction of the largest of its tensor. fp32: float64 rounded on another machine;
# fp16: 11 bits; int8: half of one of 127 steps of the channel's own scale, twice that to spare.
_OFF: Mapping[Precision, float] = {FP32: 1e-5, FP16: 1e-3, INT8: 1 / 127}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_PASSING = {"Cast", "DequantizeLinear", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_TINY = 1e-6  # below what any of them changes in a score

_Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class GraphWeights:
    """The tensors of a graph by name, those of int8 as the numbers that they stand for, and its precision."""

    tensors: Mapping[str, _Array]
    precision: Precision


def weights_of(content: GraphBytes) -> GraphWeights:
    """Read the tensors that lead to the scores, and from them the precision of the graph, whatever is said of it."""
    model = onnx.load_model_from_string(content.model)
    external = external_tensors(content)
    nodes = _leading_to_outputs(model.graph)
    read = {name for node in nodes for name in node.input}
    raw = {
        tensor.name: external[tensor.name] if tensor.name in external else numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in read and (tensor.name in external or tensor.data_location != TensorProto.EXTERNAL)
    }
    tensors = {}
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in raw and node.input[1] in raw:
            tensors[node.input[0].removesuffix("_quantized")] = _dequantised(node, raw)
    plain = {name: array for name, array in raw.items() if array.dtype in {np.dtype("f2"), np.dtype("f4")}}
    return GraphWeights({**plain, **tensors}, _precision(nodes, raw))


def _leading_to_outputs(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that an output depends on, in order; the others compute nothing that anybody sees."""
    wanted, found = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _precision(nodes: Sequence[onnx.NodeProto], raw: Mapping[str, _Array]) -> Precision:
    """Return how most numbers are stored that convolutions and linear layers read: one small tensor decides nothing."""
    stored: dict[Precision, int] = {FP32: 0, FP16: 0, INT8: 0}
    origin = {name: name for name in raw}
    for node in nodes:
        if node.op_type in _WEIGHTED:
            for array in (raw[origin[name]] for name in node.input if name in origin):
                kind = INT8 if array.dtype.kind in "iu" else FP16 if array.dtype == np.float16 else FP32
                stored[kind] += array.size
        elif node.op_type in _PASSING and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
    return max(stored, key=lambda kind: stored[kind])  # the first, and the strictest, of equals


def _dequantised(node: onnx.NodeProto, raw: Mapping[str, _Array]) -> _Array:
    values, scale = raw[node.input[0]].astype(np.float64), raw[node.input[1]].astype(np.float64)
    zero = raw.get(node.input[2], np.zeros(())) if len(node.input) > 2 else np.zeros(())
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if scale.size > 1:
        shape = [-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    found: _Array = (values - zero) * scale
    return found


def share_of_weights(folds: Iterable[fx.GraphModule], graph: GraphWeights) -> float:
    """Return the largest fraction of the numbers of one of ``folds`` that ``graph`` holds, in [0, 1].

    ``folds`` are one network's, padded for one alignment or another; they may be changed.
    """
    best = 0.0
    for folded in folds:
        best = max(best, _share(_parameters(folded), graph))
        affines_to_convolutions_(folded)  # as for a CPU, whose graphs have other shapes of them
        best = max(best, _share(_parameters(folded), graph))
        if best == 1.0:
            break
    return best


def share_as_converted(folds: Iterable[fx.GraphModule], graph: GraphWeights, *, shape: tuple[int, int, int]) -> float:
    """Return the same of what ``folds`` have in them once they are converted, which takes seconds each.

    A network may compute its weights, as one that standardises them does, and a converter does that beforehand.
    """
    best = 0.0
    for folded in folds:
        model = onnx_from_module(folded, input_shape=shape, opset=OLDEST_WRITTEN)
        tensors = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value]
        best = max(best, _share([array for array in tensors if array.dtype == np.float32], graph))
    return best


def _parameters(folded: fx.GraphModule) -> list[_Array]:
    return [parameter.detach().numpy() for parameter in folded.parameters()]


def _share(tensors: Sequence[_Array], graph: GraphWeights) -> float:
    """Tensors are looked for by their values: names and order are the converter's, and so is a transposition."""
    left: dict[int, list[_Array]] = {}
    for array in graph.tensors.values():
        left.setdefault(array.size, []).append(array)
    total = found = 0
    for wanted in tensors:
        total += wanted.size
        allowed = max(_OFF[graph.precision] * float(np.abs(wanted).max(initial=0)), _TINY)
        for i, array in enumerate(left.get(wanted.size, [])):
            if _same(wanted, array, allowed):
                found += wanted.size
                del left[wanted.size][i]  # each stands for one
                break
    return found / total if total else 1.0


def _same(wanted: _Array, array: _Array, allowed: float) -> bool:
    turns = [array, array.T] if array.ndim == 2 else [array]
    return any(bool(np.abs(turn.reshape(-1) - wanted.reshape(-1)).max(initial=0) <= allowed) for turn in turns)


def require_weights(share: float, *, name: str) -> None:
    """Raise VerificationError unless a graph holds nearly all weights of its path."""
    if share < LEAST_SHARE:
        raise VerificationError(
            f"the graph {name!r} holds {share:.1%} of its path's weights in the checkpoint, where an export writes all "
            "of them; it does not belong to this checkpoint"
        )
