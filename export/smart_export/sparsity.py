"""What an ONNX file costs and where its zeros are, layer by layer; any file, read as data and never run.

    found = sparsity_of_onnx(Path("model.onnx"))
    found.macs, [layer.name for layer in found.layers if layer.zeros is not None and layer.zeros.holds]

A layer's weight is followed back from the layer to the tensor in the file, through whatever only stores it in another
way: Constant, Identity, Cast, Transpose, Reshape, QuantizeLinear and DequantizeLinear. What they do to it is computed,
so that an int8 weight is zero where it equals its zero point. `polygraphy inspect sparsity` looks for the same pattern,
but not behind a Reshape, not in int8, and stops at a weight's first violation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx

from smart_common.errors import shortened
from smart_devices import Target
from smart_export.errors import ExportError
from smart_export.onnx_constants import OWN_DOMAINS, Constant, Constants, attributes_of, bytes_of, count_of
from smart_export.patterns import Zeros, why_no_gain, zeros_of
from smart_export.shapes import fixed_shape, inferred_shapes, stated_shapes
from smart_runtime.bundle.bundle import MAX_GRAPH_BYTES
from smart_runtime.engines.onnx_weights import check_bounds
from smart_runtime.errors import EngineError
from smart_train.masking.n_of_m import TWO_FOUR, NOfM

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that are counted."""

# They multiply weights too. Files that have them are told so instead of getting sums that look complete.
_NOT_COUNTED = {
    *("Attention", "ConvInteger", "DeformConv", "Einsum", "GRU", "LSTM"),
    *("MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN"),
}
_SMALL_BYTES = 4096  # a larger tensor is a weight: shapes are inferred without its values


@dataclass(frozen=True)
class LayerSparsity:
    """One layer of an ONNX file.

    Attributes:
        name: the tensor's without ".weight", else the node's, else its output's: exporters name nodes by number. It can
            be shown as it is.
        op: one of `LAYERS`.
        weight: the tensor in the file, None (as ``zeros``) if the weight is computed at run time.
        shape: the weight's as the layer reads it, None if unknown.
        dtype: what the layer computes with: int8 behind a DequantizeLinear, else the type after any Cast.
        groups: of a convolution, else 1.
        in_channels, out_channels: 0 if unknown.
        parameters, bytes: numbers in weight and bias, and what they take in the file.
        macs: multiply-accumulates for one image; None if the output's size is unknown.
        why_no_gain: why the target would not run the layer faster with the pattern, whether its weight has it or not;
            None where it is expected to, or there is no target.
    """

    name: str
    op: str
    weight: str | None
    shape: tuple[int, ...] | None
    dtype: str
    groups: int
    in_channels: int
    out_channels: int
    parameters: int
    bytes: int
    zeros: Zeros | None
    macs: int | None
    why_no_gain: str | None

    @property
    def why_not(self) -> str | None:
        """Why its weight is none that an engine takes for sparse, None where it is one."""
        return "the weight is computed at run time" if self.zeros is None else self.zeros.why_not


@dataclass(frozen=True)
class FileSparsity:
    """What `sparsity_of_onnx` found.

    Attributes:
        pattern: that was looked for.
        layers: in the file's order.
        parameters, bytes: in weights and biases, each tensor once however many layers share it.
        other_parameters: in floating-point tensors that are no layer's: normalisation, tables, scales.
        notes: what the figures leave out, for people.
    """

    pattern: NOfM
    layers: tuple[LayerSparsity, ...]
    parameters: int
    bytes: int
    other_parameters: int
    notes: tuple[str, ...]

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of all layers for one image; None if those of one are unknown."""
        found = [layer.macs for layer in self.layers]
        return None if None in found else sum(cast("list[int]", found))


def sparsity_of_onnx(file: Path, *, pattern: NOfM = TWO_FOUR, target: Target | None = None) -> FileSparsity:
    """Read ``file``, and the external data beside it, and report on each of its layers.

    With a ``target`` its gain from the pattern is judged.

    Raises:
        ExportError: if it is no ONNX file, damaged, or its external data is missing or not beside it.
        OSError: if the system cannot read it.
    """
    model = _read_model(file)
    try:
        return _Reader(model, folder=file.parent, pattern=pattern, target=target).report()
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        # A stranger's file: a permutation of other axes, a reshape to another size, data of another length.
        raise ExportError(
            f"expected a sound ONNX graph in {file}, got one that does not fit together ({shortened(str(error))}); "
            f"onnx.checker says more"
        ) from error


def _read_model(file: Path) -> onnx.ModelProto:
    if not file.is_file():
        raise ExportError(f"no ONNX file at {file}; give the model.onnx of a bundle, or another file")
    size = file.stat().st_size
    if size > MAX_GRAPH_BYTES:
        raise ExportError(f"expected an ONNX file of at most {MAX_GRAPH_BYTES} bytes, got {size}; is {file} one?")
    model, data = onnx.ModelProto(), file.read_bytes()
    try:
        check_bounds(data)  # before a parser takes a hundred bytes for each two of it
    except EngineError as error:
        raise ExportError(f"{file} is no ONNX file that can be judged: {error}") from error
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own, which has no types
        raise ExportError(f"{file} is no ONNX file; export the network to ONNX") from error
    if not _is_text(model):
        raise ExportError(f"{file} has names that are no UTF-8; export the network again")
    if not model.graph.node or not model.opset_import:  # protobuf takes many a file for an odd message
        raise ExportError(f"{file} holds no graph; export the network to ONNX")
    return model


def _is_text(message: Any) -> bool:
    """Whether every text in a message is one: protobuf hands over as bytes what is no UTF-8."""
    for field, value in message.ListFields():
        values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
        if field.type == field.TYPE_STRING and any(isinstance(one, bytes) for one in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
    return True


class _Reader:
    """Answers questions about one graph."""

    def __init__(self, model: onnx.ModelProto, *, folder: Path, pattern: NOfM, target: Target | None) -> None:
        self._model = model
        self._pattern = pattern
        self._target = target
        self._constants = Constants(model.graph, folder=folder)
        self._batch = 1
        self._gave_up = False

    def report(self) -> FileSparsity:
        shapes = self._shapes()
        layers: list[LayerSparsity] = []
        used: dict[str, onnx.TensorProto] = {}
        for node in self._model.graph.node:
            if node.op_type in LAYERS and node.domain in OWN_DOMAINS:
                layer, tensors = self._layer(node, shapes)
                layers.append(layer)
                used.update(tensors)
        others = [tensor for name, tensor in self._constants.tensors.items() if name not in used]
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
        return FileSparsity(
            pattern=self._pattern,
            layers=tuple(layers),
            parameters=sum(map(count_of, used.values())),
            bytes=sum(map(bytes_of, used.values())),
            other_parameters=sum(count_of(tensor) for tensor in others if tensor.data_type in floats),
            notes=tuple(self._notes(layers)),
        )

    def _notes(self, layers: Sequence[LayerSparsity]) -> Iterator[str]:
        if self._gave_up:
            yield "shapes were not inferred, since that takes more time or memory than any network's"
        unknown = [layer.name for layer in layers if layer.macs is None]
        if unknown:
            yield (
                f"the multiply-accumulates of {len(unknown)} layers are unknown, since the sizes they work on are not "
                f"fixed in the file: {', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}"
            )
        left_out = Counter(node.op_type for node in self._model.graph.node if node.op_type in _NOT_COUNTED)
        # How often the layers in branches and loops run, the file does not say.
        inner = (node.op_type for node in _nodes_within(self._model.graph.node))
        left_out += Counter(f"{op} inside of a node" for op in inner if op in _NOT_COUNTED.union(LAYERS))
        if left_out:
            yield "not counted: " + ", ".join(f"{number} {op}" for op, number in sorted(left_out.items()))

    def _layer(
        self, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[LayerSparsity, dict[str, onnx.TensorProto]]:
        attributes = attributes_of(node)
        side, weight = self._weight_of(node)
        shape = shapes.get(node.input[side]) if weight is None else tuple(weight.values.shape)
        groups = int(attributes.get("group", 1)) if node.op_type.startswith("Conv") else 1
        if groups < 1:
            raise ValueError(f"{groups} groups")
        axis = _summed_axis(node.op_type, side, attributes, rank=0 if shape is None else len(shape))
        used = {} if weight is None else {weight.name: weight.stored}
        bias = self._constants(node.input[2]) if node.op_type != "MatMul" and len(node.input) > 2 else None
        if bias is not None:
            used[bias.name] = bias.stored
        in_channels, out_channels = _channels(node.op_type, shape, axis, groups)
        dtype = "unknown" if weight is None else weight.dtype
        kind: dict[str, Any] = {"op": node.op_type, "groups": groups, "dtype": dtype, "pattern": self._pattern}
        why = None
        if self._target is not None:
            why = why_no_gain(self._target, in_channels=in_channels, out_channels=out_channels, **kind)
        layer = LayerSparsity(
            # A stranger's name must not move a terminal's cursor.
            name=shortened((weight.name.removesuffix(".weight") if weight else node.name) or node.output[0]),
            op=node.op_type,
            weight=None if weight is None else weight.name,
            shape=shape,
            dtype=dtype,
            groups=groups,
            in_channels=in_channels,
            out_channels=out_channels,
            parameters=sum(map(count_of, used.values())),
            bytes=sum(map(bytes_of, used.values())),
            zeros=None if weight is None else zeros_of(weight.values, axis=axis, **kind),
            macs=self._macs(node, shape, axis, shapes),
            why_no_gain=why,
        )
        return layer, used

    def _macs(
        self, node: onnx.NodeProto, weight: tuple[int, ...] | None, axis: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> int | None:
        """Return outputs times products for each, for one image; a transposed convolution has inputs times products."""
        turned = node.op_type == "ConvTranspose"
        places = shapes.get(node.input[0] if turned else node.output[0])
        if weight is None or places is None:
            return None
        each = math.prod(weight[1:]) if node.op_type.startswith("Conv") else weight[axis]
        total = math.prod(places) * each
        return None if total % self._batch else total // self._batch

    def _weight_of(self, node: onnx.NodeProto) -> tuple[int, Constant | None]:
        """Return which input is the weight, and the weight; a matrix product may have it on either side."""
        found = self._constants(node.input[1])
        if found is None and node.op_type in {"Gemm", "MatMul"} and (other := self._constants(node.input[0])):
            return 0, other
        return 1, found

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each value that has a fixed one for a batch of 1, or of the file's own fixed size."""
        whole, ours = self._model, self._model.graph
        parts = {part: getattr(ours, part) for part in ("name", "node", "input", "output", "value_info")}
        light = onnx.ModelProto(
            ir_version=whole.ir_version,
            opset_import=whole.opset_import,
            graph=onnx.GraphProto(**parts),
        )
        graph = light.graph
        for tensor in ours.initializer:
            if tensor.ByteSize() <= _SMALL_BYTES and tensor.data_location != onnx.TensorProto.EXTERNAL:
                graph.initializer.append(tensor)  # the target of a Reshape, the axes of a mean
            else:  # its values would be copied three times, and no shape depends on them
                graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        self._fix_batch_(graph)
        found = inferred_shapes(light)
        self._gave_up = found is None
        return {tensor.name: tuple(tensor.dims) for tensor in ours.initializer} | (found or stated_shapes(graph))

    def _fix_batch_(self, graph: onnx.GraphProto) -> None:
        """Make the batch 1 wherever the file leaves it open, in place; remember the size that it fixes."""
        inputs = [value for value in graph.input if value.name not in self._constants.tensors]
        symbols: set[str] = set()
        for value in inputs:
            dims = value.type.tensor_type.shape.dim
            if dims and dims[0].dim_value <= 0:
                symbols.add(dims[0].dim_param)
                dims[0].dim_value = 1
        for value in (*inputs, *graph.value_info, *graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param and dim.dim_param in symbols:
                    dim.dim_value = 1
        if inputs and (shape := fixed_shape(inputs[0])):
            self._batch = max(1, shape[0])


def _nodes_within(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.node
            yield from _nodes_within(graph.node)


def _summed_axis(op: str, side: int, attributes: Mapping[str, Any], *, rank: int) -> int:
    """Return the axis of the weight over which products are summed up; ``side`` is 0 where the weight comes first."""
    if op == "Conv":
        return 1
    if op == "ConvTranspose":
        return 0
    if op == "Gemm":
        turned = attributes.get("transA" if side == 0 else "transB", 0)
        return int(bool(turned)) if side == 1 else 1 - int(bool(turned))
    return max(rank - (2 if side == 1 else 1), 0)


def _channels(op: str, shape: tuple[int, ...] | None, axis: int, groups: int) -> tuple[int, int]:
    """Return the layer's channels in and out, 0 where unknown."""
    if not shape or axis >= len(shape):
        return 0, 0
    if op == "Conv":
        return shape[1] * groups, shape[0]
    if op == "ConvTranspose":
        return shape[0], shape[1] * groups
    others = [length for i, length in enumerate(shape[-2:], start=max(len(shape) - 2, 0)) if i != axis]
    return shape[axis], others[0] if others else 1
