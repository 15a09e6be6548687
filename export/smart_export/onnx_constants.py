"""Constants of an ONNX graph: from the name that a node reads back to the tensor in the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from smart_common.errors import shortened
from smart_export.errors import ExportError
from smart_runtime.bundle.files import open_plain
from smart_runtime.bundle.package import is_inside
from smart_runtime.errors import BundleError

OWN_DOMAINS = ("", "ai.onnx")
# What only stores a constant in another way; behind a DequantizeLinear a layer computes in the type that it reads.
_STEPS = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"}
_MAX_STEPS = 64  # between a node and its tensor; a real file has five
# How much of a file's constants is read and changed in all: each of a real one once or twice, in five steps.
_MOST_READ = 16  # numbers, for each byte of the file and of its external data
_ALWAYS_READ = 2**24
_STEPS_A_NODE = 2
_DTYPE_NAMES = {"float": "float32", "double": "float64"}  # the others are called as in NumPy

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Constant:
    """A tensor as a node reads it, and as it is ``stored`` in the file under ``name``.

    ``values`` are float32 where NumPy does not have their type. A layer computes with them in ``dtype``: int8 behind a
    DequantizeLinear, else the type after any Cast.
    """

    name: str
    values: Array
    dtype: str
    stored: onnx.TensorProto


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _dtype_name(element_type: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(element_type).lower()
    return _DTYPE_NAMES.get(name, name)


def count_of(tensor: onnx.TensorProto) -> int:
    """Return how many numbers a tensor has."""
    return math.prod(tensor.dims)


def bytes_of(tensor: onnx.TensorProto) -> int:
    """Return how many bytes its numbers take in the file, packed as ONNX packs them."""
    return (count_of(tensor) * ir.DataType(tensor.data_type).bitwidth + 7) // 8


class Constants:
    """The constants of one graph, whose file is in ``folder``, its external data beside it."""

    def __init__(self, graph: onnx.GraphProto, *, folder: Path) -> None:
        self._folder = folder
        self._numbers_left = _ALWAYS_READ + _MOST_READ * graph.ByteSize()
        self._steps_left = _STEPS_A_NODE * len(graph.node) + _MAX_STEPS
        self._opened: set[str] = set()
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}

    def __call__(self, name: str) -> Constant | None:
        """Return the constant ``name``, None if it depends on an input, or on more than only stores it otherwise.

        Raises:
            ExportError: if its data is missing or not beside the file.
            ValueError, TypeError, KeyError, IndexError, OverflowError: if the graph does not fit together.
        """
        steps: list[onnx.NodeProto] = []
        while (weight := self._tensor(name)) is None:
            node = self._producers.get(name)
            if node is None or node.domain not in OWN_DOMAINS or node.op_type not in _STEPS or not node.input:
                return None
            if len(steps) >= _MAX_STEPS:
                return None
            steps.append(node)
            name = node.input[0]
        for node in reversed(steps):
            # Only what stands in the file as it is: a stranger's scales of scales of scales would take years.
            operands = [self._tensor(operand) for operand in node.input[1:] if operand]
            if None in operands:
                return None
            self._steps_left -= 1
            self._spend(weight.values.size)
            weight = _step(node, weight, cast("list[Constant]", operands))
        # Types that NumPy does not have, which come as extensions, as float32: it holds all their values.
        known = weight.values.dtype.kind in "fiub"
        return weight if known else replace(weight, values=weight.values.astype(np.float32))

    def _spend(self, numbers: int) -> None:
        """Count what is read or changed; ValueError once it is more than any network needs."""
        self._numbers_left -= numbers
        if self._numbers_left < 0 or self._steps_left < 0:
            raise ValueError("constants that are read or changed more often than any network's")

    def _tensor(self, name: str) -> Constant | None:
        """Return the tensor that the file has for ``name``, None if a node computes it."""
        node = self._producers.get(name)
        stored = self.tensors.get(name)
        if stored is None and node is not None and node.op_type == "Constant":
            self._spend(len(node.attribute))
            stored = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if not isinstance(stored, onnx.TensorProto):
            return None
        return Constant(name=name, values=self._values(stored), dtype=_dtype_name(stored.data_type), stored=stored)

    def _values(self, tensor: onnx.TensorProto) -> Array:
        if any(length < 0 for length in tensor.dims):
            raise ValueError(f"a tensor of the shape {list(tensor.dims)}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            data = self._external(tensor)
            self._spend(len(data))
            tensor = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=data)
        self._spend(count_of(tensor))
        return numpy_helper.to_array(tensor)

    def _external(self, tensor: onnx.TensorProto) -> bytes:
        """Return the bytes of a tensor in a file beside the graph."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location, offset, wanted = entries.get("location", ""), int(entries.get("offset", "0")), bytes_of(tensor)
        if not is_inside(location):
            raise ExportError(
                f"the data of the tensor {shortened(tensor.name)!r} is in {shortened(location)!r}, not in a file "
                "beside the graph; export it so that both are in the same folder"
            )
        try:
            file, size = open_plain(self._folder, location)
            if location not in self._opened:
                self._opened.add(location)
                self._numbers_left += _MOST_READ * size
            with file:
                if offset < 0 or wanted < 0 or offset + wanted > size:
                    raise ExportError(
                        f"expected {wanted} bytes at {offset} of {location} for the tensor {shortened(tensor.name)!r}, "
                        f"got a file of {size}; copy or export it again"
                    )
                return np.fromfile(file, np.uint8, wanted, offset=offset).tobytes()
        except BundleError as error:
            raise ExportError(
                f"no plain file {location}, which holds the weights, beside the graph in {self._folder}; copy it there"
            ) from error


def _step(node: onnx.NodeProto, constant: Constant, operands: Sequence[Constant]) -> Constant:
    """Return what ``node``, one of ``_STEPS``, makes of ``constant``; raises ValueError if it cannot."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415  # brings all operators, which few files need

    _check_step(node, constant, operands)
    names = [name for name in node.input if name]
    arrays = [one.values for one in (constant, *operands)]
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(node).run(None, dict(zip(names, arrays, strict=True)))
            values = cast("list[Array]", results)[0]
    except Exception as error:  # of a stranger's node: it has no class for what does not fit together
        raise ValueError(f"{node.op_type}: {error}") from error
    changes_type = node.op_type in {"Cast", "QuantizeLinear"}
    dtype = _dtype_name(onnx.helper.np_dtype_to_tensor_dtype(values.dtype)) if changes_type else constant.dtype
    return replace(constant, values=values, dtype=dtype)


def _check_step(node: onnx.NodeProto, constant: Constant, operands: Sequence[Constant]) -> None:
    """Raise ValueError if ``node`` would make more numbers than ``constant`` has, or no numbers.

    onnx's reference repeats a scale as often as a file says, and NumPy lets scale and weight widen each other.
    """
    attributes, shape = attributes_of(node), constant.values.shape
    if node.op_type == "Cast" and attributes.get("to") == onnx.TensorProto.STRING:
        raise ValueError("a weight of texts")
    if node.op_type not in {"DequantizeLinear", "QuantizeLinear"}:
        return
    block, axis = int(attributes.get("block_size", 0)), int(attributes.get("axis", 1))
    widest = list(shape)
    length = shape[axis] if -len(shape) <= axis < len(shape) else 1
    if block:
        if not 0 < block <= length:
            raise ValueError(f"blocks of {block} along an axis of {length}")
        widest[axis] = -(-length // block)
    for given in (operand.values.shape for operand in operands):
        each = len(given) == len(shape) and all(a <= b for a, b in zip(given, widest, strict=True))
        if not (math.prod(given) == 1 or given == (length,) or each):
            raise ValueError(f"a scale of the shape {list(given)} for a weight of the shape {list(shape)}")
