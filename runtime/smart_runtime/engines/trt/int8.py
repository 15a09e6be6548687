"""Tell graphs that were quantised for a CPU before TensorRT tries to build them.

TensorRT takes int8 around 0 only, and biases as floats (its documentation, Working with Quantized Types). ONNX Runtime
on x86 is fastest with uint8 activations that have a zero point of their own, and int32 biases. ``smart-export``
quantises for the one or the other.
"""

from __future__ import annotations

from smart_runtime.engines.protobuf import integer, messages, text
from smart_runtime.errors import EngineError

# Field numbers and data types: onnx.proto3 of ONNX 1.x.
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_NAME, _NODE_OPERATOR = 1, 3, 4
_TENSOR_DATA_TYPE, _TENSOR_NAME = 2, 8
_FOREIGN = {2: "uint8", 6: "int32"}


def check_quantisation(model: bytes) -> None:
    """Refuse an ONNX file with Q/DQ nodes that TensorRT does not take.

    Raises:
        EngineError: A node quantises to uint8, or reads int32 as quantised; or this is no ONNX file.
    """
    try:
        found = _foreign_node(memoryview(model))
    except ValueError as error:
        raise EngineError(f"expected an ONNX file, got {error}; export the bundle again") from error
    if found is not None:
        raise EngineError(
            f"this graph is quantised for a CPU, with recipe 'cpu' ({found}), which TensorRT does not take; "
            "export the bundle again with the --target that it is to run on"
        )


def _foreign_node(model: memoryview) -> str | None:
    for graph in messages(model, _MODEL_GRAPH):
        types = {
            text(tensor, _TENSOR_NAME): _FOREIGN.get(integer(tensor, _TENSOR_DATA_TYPE))
            for tensor in messages(graph, _GRAPH_INITIALIZER)
        }
        for node in messages(graph, _GRAPH_NODE):
            operator = text(node, _NODE_OPERATOR)
            if operator not in {"QuantizeLinear", "DequantizeLinear"}:
                continue
            for name in (bytes(value).decode() for value in messages(node, _NODE_INPUT)):
                if kind := types.get(name):
                    return f"{operator} {text(node, _NODE_NAME) or '(no name)'} with {name!r} in {kind}"
    return None
