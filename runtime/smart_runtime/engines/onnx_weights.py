"""Find a graph's external tensors in the bytes of its weights file.

New ONNX Runtimes can be given the file's bytes as they are, but 1.23, the newest for JetPack 6's Python 3.10, takes
tensors only, so this reads the little of an ONNX file that says where each one lies. It also makes sure that a graph
takes its tensors from the checked weights and from nowhere else. Field numbers: onnx.proto3 of ONNX 1.x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from smart_runtime.bundle import GraphBytes
from smart_runtime.errors import EngineError

Tensor: TypeAlias = npt.NDArray[Any]

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 1, 2, 8, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_LOCATION_EXTERNAL = 1

_DTYPES: Mapping[int, npt.DTypeLike] = {
    1: "<f4",
    2: "u1",
    3: "i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "?",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
}

# A field's number and its value: an integer, or the bytes of a text, a message or a packed list.
_Field: TypeAlias = tuple[int, "int | memoryview"]


def external_tensors(graph: GraphBytes) -> dict[str, Tensor]:
    """Return the graph's external tensors by name: views of ``graph.weights``, read only.

    Raises:
        EngineError: Not an ONNX file, or a tensor that is not whole inside the weights file.
    """
    try:
        return dict(
            _tensor(initializer, graph)
            for model_graph in _messages(memoryview(graph.model), _MODEL_GRAPH)
            for initializer in _messages(model_graph, _GRAPH_INITIALIZER)
            if _integer(initializer, _TENSOR_DATA_LOCATION) == _LOCATION_EXTERNAL
        )
    except (ValueError, OverflowError) as error:  # what this module and NumPy raise for bytes that make no sense
        raise EngineError(
            f"expected an ONNX graph with its tensors in its weights file, got {error}; export the bundle again"
        ) from error


def _tensor(initializer: memoryview, graph: GraphBytes) -> tuple[str, Tensor]:
    name = "".join(_texts(initializer, _TENSOR_NAME))
    entries = {
        "".join(_texts(entry, _ENTRY_KEY)): "".join(_texts(entry, _ENTRY_VALUE))
        for entry in _messages(initializer, _TENSOR_EXTERNAL_DATA)
    }
    if graph.weights is None or entries.get("location") != graph.weights_name:
        raise ValueError(f"{name!r} in {entries.get('location')!r} instead of {graph.weights_name!r}")
    data_type = _integer(initializer, _TENSOR_DATA_TYPE)
    if data_type not in _DTYPES:
        raise ValueError(f"{name!r} of the ONNX data type {data_type}, which has no NumPy equal")
    dtype = np.dtype(_DTYPES[data_type])
    shape = tuple(_dims(initializer))
    offset, size = int(entries.get("offset", "0")), math.prod(shape) * dtype.itemsize
    if int(entries.get("length", size)) != size or offset < 0 or offset + size > len(graph.weights):
        raise ValueError(f"{name!r} of {size} bytes at {offset} in {len(graph.weights)} bytes")
    values = np.frombuffer(memoryview(graph.weights)[offset : offset + size], dtype=dtype).reshape(shape)
    return name, values if values.flags.aligned else values.copy()


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    for field, value in _fields(message):
        if field == number:
            if isinstance(value, int):
                raise ValueError("a number in the place of a message")
            yield value


def _texts(message: memoryview, number: int) -> Iterator[str]:
    return (bytes(value).decode("utf-8") for value in _messages(message, number))


def _integer(message: memoryview, number: int) -> int:
    """Return the last value of an integer field, 0 without one, as protobuf does."""
    result = 0
    for field, value in _fields(message):
        if field == number:
            if not isinstance(value, int):
                raise ValueError("a message in the place of a number")
            result = value
    return result


def _dims(tensor: memoryview) -> Iterator[int]:
    for field, value in _fields(tensor):
        if field != _TENSOR_DIMS:
            continue
        if isinstance(value, int):
            yield value
        else:  # packed: one field with all the numbers
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                yield number


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yield the fields of a protobuf message (protobuf.dev, Encoding); fixed-size numbers as their bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        elif wire_type in {1, 5}:
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"the protobuf wire type {wire_type}, which ONNX does not use")
        if position + size > len(message):
            raise ValueError("a file that ends too early")
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number at ``position`` and where the next one begins."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a file that ends too early or is no protobuf")
