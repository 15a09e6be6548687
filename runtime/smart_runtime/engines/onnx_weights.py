"""Find a graph's external tensors in the bytes of its weights file, and refuse a graph that is no plain one.

New ONNX Runtimes can be given the file's bytes as they are, but 1.23, the newest for JetPack 6's Python 3.10, takes
tensors only, so this reads the little of an ONNX file that says where each one lies. It also makes sure that a graph
takes its tensors from the checked weights and from nowhere else: ONNX Runtime looks for any other external tensor in
the working directory. And since it sees the whole graph, it is where everything is refused that a classifier of ours
never has and that an engine would act on: what can loop, functions, operators from elsewhere, session options.
Field numbers: onnx.proto3 of ONNX 1.x.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from smart_common.errors import shortened
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.engines.protobuf import fields, integer, messages, text, varint
from smart_runtime.errors import EngineError

Tensor: TypeAlias = npt.NDArray[Any]

_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 1, 2, 8, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2  # of external data and of metadata alike
_MODEL_METADATA, _NODE_DOMAIN = 14, 7

_SESSION_OPTIONS = "ort_config"
"""The metadata that ONNX Runtime takes session options from where the environment has ORT_LOAD_CONFIG_FROM_MODEL=1."""

_DOMAINS = {"", "ai.onnx"}
"""Where ONNX's own operators live; others may come from a library, or name a file (EPContext of com.microsoft)."""

MAX_PARTS = 2**17
"""Nodes, attributes and tensors of a graph: ResNet-152 has some thousands."""

_MAX_DIMS = 32  # NumPy 1 has no more; the product of many, of a stranger's choice, takes minutes

_INITIALIZER = "initializer"
"""A tensor of the main graph's: the only kind that may be external, and that the session takes from us."""

_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "main graph", 20: "training", 25: "function"},
    "main graph": {1: "node", 5: _INITIALIZER, 15: "sparse tensor"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
"""Every field of a kind of message that leads to tensors, and the kind it holds. What is not a key is a tensor."""

_FOREIGN: Mapping[str, str] = {
    "graph": "a graph inside a node, as If, Loop and Scan have",
    "function": "a function",
    "training": "training information",
    "sparse tensor": "a sparse tensor",
}
"""The kinds of message that no graph of a bundle has, in words."""

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


def external_tensors(graph: GraphBytes) -> dict[str, Tensor]:
    """Return the graph's external tensors by name: views of ``graph.weights``, read only.

    Raises:
        EngineError: Not an ONNX file, or an external tensor that is not whole inside the weights file or that belongs
            to a node, or a graph with subgraphs, functions, training information, sparse tensors, operators that are
            not ONNX's own, or session options.
    """
    try:
        return _external_tensors(graph)
    except (ValueError, OverflowError) as error:  # what this module and NumPy raise for bytes that make no sense
        raise EngineError(
            f"expected a plain ONNX graph with its tensors in its weights file, got {shortened(str(error))}; "
            "export the bundle again"
        ) from error


def external_locations(model: bytes) -> tuple[str, ...]:
    """Return the files, relative to its own, that the ONNX file ``model`` keeps tensors in; sorted.

    Raises:
        EngineError: Not an ONNX file.
    """
    try:
        locations = {
            _external_data(message).get("location", "")
            for kind, message in _parts(memoryview(model))
            if _is_tensor(kind) and is_external(message)
        }
    except ValueError as error:
        raise EngineError(f"expected an ONNX file, got {shortened(str(error))}; check what the file is") from error
    return tuple(sorted(locations))


def check_bounds(model: bytes) -> None:
    """Check, before any library parses it, that an ONNX file of any maker has not more parts than a network has.

    Functions are refused: one may call itself, or thirty of them two of the next, which is 2^30 nodes for who expands
    them.

    Raises:
        EngineError: Not an ONNX file, one with functions, with more than `MAX_PARTS` nodes, attributes and tensors, or
            with a tensor of more dimensions than any array has.
    """
    try:
        for kind, message in _parts(memoryview(model)):
            _check_part(kind, message)
    except ValueError as error:
        raise EngineError(
            f"expected a network's ONNX file, got one with {shortened(str(error))}; export the network again"
        ) from error


def _external_tensors(graph: GraphBytes) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for kind, message in _parts(memoryview(graph.model)):
        _check_plain(kind, message)
        if not _is_tensor(kind) or not is_external(message):
            continue
        if kind != _INITIALIZER:
            name = text(message, _TENSOR_NAME)
            raise ValueError(f"the external tensor {name!r} outside the main graph's initializers")
        name, value = _tensor(message, graph)
        if name in tensors:  # the session would replace one of them and look for the other on its own
            raise ValueError(f"two external tensors called {name!r}")
        tensors[name] = value
    return tensors


def _check_part(kind: str, message: memoryview) -> None:
    if kind == "function":
        raise ValueError("functions, which an exporter can inline")
    if _is_tensor(kind):
        _shape(message)


def _check_plain(kind: str, message: memoryview) -> None:
    """Refuse the parts of a model that no graph of a bundle has; see the top of the module."""
    if kind in _FOREIGN:
        raise ValueError(_FOREIGN[kind])
    if kind == "node" and (domain := text(message, _NODE_DOMAIN)) not in _DOMAINS:
        raise ValueError(f"an operator of the domain {domain!r}")
    if kind == "model" and any(text(m, _ENTRY_KEY) == _SESSION_OPTIONS for m in messages(message, _MODEL_METADATA)):
        raise ValueError(f"session options in the metadata {_SESSION_OPTIONS!r}")


def _parts(model: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield the model, and every part of it that is or leads to tensors, with its kind; initializers in their order.

    A queue and not recursion: a file decides how deep it is nested.
    """
    waiting = deque([("model", model)])
    parts = 1
    while waiting:
        kind, message = waiting.popleft()
        yield kind, message
        for number, child in _CHILDREN.get(kind, {}).items():
            for inner in messages(message, number):
                parts += 1
                if parts > MAX_PARTS:  # one of two bytes takes over a hundred here
                    raise ValueError(f"more than {MAX_PARTS} nodes, attributes and tensors")
                waiting.append((child, inner))


def _is_tensor(kind: str) -> bool:
    return kind not in _CHILDREN


def is_external(tensor: memoryview) -> bool:
    """Say whether protobuf could read the tensor as external; it cuts a location to 32 bits and skips unknown ones."""
    return any(number == _TENSOR_DATA_LOCATION and value != 0 for number, value, _ in fields(tensor))


def _tensor(initializer: memoryview, graph: GraphBytes) -> tuple[str, Tensor]:
    name = text(initializer, _TENSOR_NAME)
    entries = _external_data(initializer)
    if graph.weights is None or entries.get("location") != graph.weights_name:
        raise ValueError(f"{name!r} in {entries.get('location')!r} instead of {graph.weights_name!r}")
    data_type = integer(initializer, _TENSOR_DATA_TYPE)
    if data_type not in _DTYPES:
        raise ValueError(f"{name!r} of the ONNX data type {data_type}, which has no NumPy equal")
    dtype = np.dtype(_DTYPES[data_type])
    shape = _shape(initializer)
    offset, size = int(entries.get("offset", "0")), math.prod(shape) * dtype.itemsize
    if int(entries.get("length", size)) != size or offset < 0 or offset + size > len(graph.weights):
        raise ValueError(f"{name!r} of {size} bytes at {offset} in {len(graph.weights)} bytes")
    values = np.frombuffer(memoryview(graph.weights)[offset : offset + size], dtype=dtype).reshape(shape)
    return name, values if values.flags.aligned else values.copy()


def _external_data(tensor: memoryview) -> dict[str, str]:
    """Return where an external tensor lies: ``location``, and where given ``offset`` and ``length``."""
    entries = messages(tensor, _TENSOR_EXTERNAL_DATA)
    return {text(entry, _ENTRY_KEY): text(entry, _ENTRY_VALUE) for entry in entries}


def _dims(tensor: memoryview) -> Iterator[int]:
    for field, value, _ in fields(tensor):
        if field != _TENSOR_DIMS:
            continue
        if isinstance(value, int):
            yield value
        else:  # packed: one field with all the numbers
            position = 0
            while position < len(value):
                number, position = varint(value, position)
                yield number


def _shape(tensor: memoryview) -> tuple[int, ...]:
    """Return the tensor's shape; refused before it is multiplied if no NumPy array has such a one."""
    shape = []
    for size in _dims(tensor):
        shape.append(size)
        if len(shape) > _MAX_DIMS or size >= 2**31:
            raise ValueError(f"a tensor of more than {_MAX_DIMS} dimensions, or of 2**31 and more in one")
    return tuple(shape)
