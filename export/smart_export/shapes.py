"""The shapes of a graph's values, inferred by onnx in a process of its own: a stranger can make that endless."""

from __future__ import annotations

import contextlib

import onnx

from smart_common.limited import run_limited

MAX_RANK = 32
"""Axes of a value; NumPy 1 has no more arrays of more."""

_SECONDS, _MAX_BYTES = 5, 3 * 2**29  # of ResNet-152's graph it takes a tenth of a second and some megabytes

Shapes = dict[str, tuple[int, ...]]


def inferred_shapes(model: onnx.ModelProto) -> Shapes | None:
    """Return the shape of each value of the main graph that has a fixed one, None if to infer them takes too much.

    What ``model`` itself says of shapes is among them, and all there is where they contradict each other.
    """
    found = run_limited("smart_export.shapes:infer", model.SerializeToString(), seconds=_SECONDS, max_bytes=_MAX_BYTES)
    return None if found is None else {name: tuple(shape) for name, shape in found.items()}


def infer(data: bytes) -> dict[str, tuple[int, ...]]:
    """Do it, in that process."""
    model = onnx.ModelProto.FromString(data)
    with contextlib.suppress(
        onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError
    ):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return stated_shapes(model.graph)


def stated_shapes(graph: onnx.GraphProto) -> Shapes:
    """Return the shape of each value for which the graph itself states a fixed one."""
    found = {value.name: fixed_shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    return {name: shape for name, shape in found.items() if shape is not None}


def fixed_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return the shape of a value, None if a size of it is open or it has more axes than any array."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or len(kind.shape.dim) > MAX_RANK:
        return None
    if not all(dim.dim_value > 0 for dim in kind.shape.dim):
        return None  # 0 and -1 are what some exporters write for "any"
    return tuple(dim.dim_value for dim in kind.shape.dim)
