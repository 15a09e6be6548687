"""Put a graph's external weights into the bytes of its ONNX file.

Every TensorRT from 8.6 on parses such bytes. Of a graph with weights outside it, it would look for a file on its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from smart_runtime.bundle.bundle import MAX_GRAPH_BYTES
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.engines.onnx_weights import Tensor, external_tensors, is_external
from smart_runtime.engines.protobuf import fields, message_field, text
from smart_runtime.errors import EngineError

# Field numbers: onnx.proto3 of ONNX 1.x.
_MODEL_GRAPH, _MODEL_OPSET_IMPORT, _GRAPH_INITIALIZER = 7, 8, 5
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME, _TENSOR_RAW_DATA = 1, 2, 8, 9
_KEPT = {_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME}  # no second value, and nothing that says where one lies


def inlined(graph: GraphBytes) -> bytes:
    """Return the ONNX file of ``graph`` with its weights inside; apart from that it is the same, byte for byte.

    The weights are copied once, into the result.

    Raises:
        EngineError: What `external_tensors` refuses, or a file that does not say which operators it means, or would be
            larger than protobuf allows.
    """
    tensors = external_tensors(graph)
    if not any(number == _MODEL_OPSET_IMPORT for number, _, _ in fields(memoryview(graph.model))):
        # It comes last: TensorRT's parser takes a file that was cut off before it, and guesses.
        raise EngineError("the ONNX file does not say which operator set it uses; it may be cut off: export it again")
    if not tensors:
        return graph.model
    pieces: list[memoryview] = []
    model, start = memoryview(graph.model), 0
    for number, value, end in fields(model):
        inside = _graph(value, tensors) if number == _MODEL_GRAPH and not isinstance(value, int) else None
        pieces += [model[start:end]] if inside is None else message_field(number, inside)
        start = end
    size = sum(len(piece) for piece in pieces)
    if size > MAX_GRAPH_BYTES:
        raise EngineError(
            f"an ONNX file holds at most {MAX_GRAPH_BYTES} bytes, and the graph has {size} with its weights; "
            "export a smaller network, or run this one with ONNX Runtime"
        )
    return b"".join(pieces)


def _graph(graph: memoryview, tensors: Mapping[str, Tensor]) -> list[memoryview] | None:
    """Return the pieces of a graph with the weights inside, None if it has none of them."""
    pieces: list[memoryview] = []
    start, found = 0, False
    for number, value, end in fields(graph):
        if number == _GRAPH_INITIALIZER and not isinstance(value, int) and is_external(value):
            pieces += message_field(number, _tensor(value, tensors[text(value, _TENSOR_NAME)]))
            found = True
        else:
            pieces.append(graph[start:end])
        start = end
    return pieces if found else None


def _tensor(initializer: memoryview, values: Tensor) -> list[memoryview]:
    pieces: list[memoryview] = []
    start = 0
    for number, _, end in fields(initializer):
        if number in _KEPT:
            pieces.append(initializer[start:end])
        start = end
    return pieces + message_field(_TENSOR_RAW_DATA, [values.reshape(-1).view(np.uint8).data])
