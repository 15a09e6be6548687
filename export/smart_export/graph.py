"""From a folded module to ONNX files: a graph and its external weights, free of any trace of this machine."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass
from torch import fx, nn

from smart_export.errors import ExportError
from smart_export.folding import ChannelAffine

GRAPH, WEIGHTS = "model.onnx", "weights.bin"
INPUT, OUTPUT = "image", "scores"

OLDEST_WRITTEN = 18
"""The oldest operator set that torch writes (torch.onnx.export, dynamo=True)."""

_REDUCTIONS = {
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    "ReduceSumSquare",
}
# Opset 18 gave these more to say, in attributes or inputs; a node that does not say it means what it meant before.
_SINCE = {"Pad": set(), "Resize": {"antialias", "axes", "keep_aspect_ratio_policy"}, "Split": {"num_outputs"}}
_INPUTS_BEFORE = {"Pad": 3, "Resize": 4, "Split": 2}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself and torch about its own future; errors still come through."""
    # The first warns that torchvision's operators are not registered; the second has a line for every failure.
    levels = {"torch.onnx": logging.ERROR, "torch.export": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class Converter:
    """Converts folded modules to ONNX: ``image`` (batch, C, H, W) to ``scores`` (batch, classes), of any batch size.

    Conversion takes seconds, and the paths of a network differ in their weights and numbers of channels only: where
    that can be told for sure, a module takes over the graph of the one before it. ``opset`` is what the target reads,
    ``input_shape`` (C, H, W).
    """

    def __init__(self, *, input_shape: tuple[int, int, int], opset: int) -> None:
        self._input_shape = input_shape
        self._opset = opset
        self._form: str | None = None
        self._model: ir.Model | None = None

    def __call__(self, module: fx.GraphModule) -> ir.Model:
        """Return the graph of what :func:`smart_export.folding.fold` returned; it is valid until the next call."""
        form = None if _has_hidden_code(module) else _form(module)
        if self._model is None or form is None or form != self._form:
            self._model = onnx_from_module(module, input_shape=self._input_shape, opset=self._opset)
            self._form = form if _is_reusable(self._model, module) else None
        else:
            self._model = _with_weights(self._model, module)
        return self._model


# Nothing in these depends on how many channels there are, as it does in a Reshape or a grouped Conv.
_FREE_OF_CHANNELS = {"Add", "Cast", "Conv", "Div", "Gemm", "MaxPool", "Mul", "ReduceMean", "Relu", "Sub"}


def _has_hidden_code(module: fx.GraphModule) -> bool:
    """Whether it calls a module of its author's that could not be traced: its code does not say what it does."""
    called = [module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"]
    return any(not isinstance(m, ChannelAffine) and not type(m).__module__.startswith("torch.nn") for m in called)


def _form(module: fx.GraphModule) -> str:
    """Return all that conversion depends on, except the weights and the numbers of channels."""
    layers = [(name, layer) for name, layer in module.named_modules() if not any(layer.children())]
    return "\n".join([module.code, *(f"{name}: {_layer_form(layer)}" for name, layer in layers)])


def _layer_form(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        kept = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode, layer.groups
        return repr(kept)
    if isinstance(layer, nn.Linear | ChannelAffine):
        return type(layer).__name__
    return repr(layer)


def _weights(module: nn.Module) -> dict[str, npt.NDArray[Any]]:
    return {name: t.detach().numpy() for name, t in (*module.named_parameters(), *module.named_buffers())}


def _is_reusable(model: ir.Model, module: nn.Module) -> bool:
    """Whether the graph is the module's operators on the module's tensors, all of them and none computed from another.

    Tensors that happen to be equal, as the biases of batch norms that have not learned, become one in a graph.
    """
    weights = _weights(module)
    operators = {node.op_type for node in model.graph}
    groups = {node.attributes.get_int("group", 1) for node in model.graph if node.op_type == "Conv"}
    if not operators <= _FREE_OF_CHANNELS or groups != {1} or not weights.keys() <= model.graph.initializers.keys():
        return False
    for name, value in model.graph.initializers.items():
        if value.dtype is not None and value.dtype.is_integer():
            continue  # the axes of a mean
        tensor = value.const_value
        if tensor is None or name not in weights or not np.array_equal(tensor.numpy(), weights[name]):
            return False
    return True


def _with_weights(model: ir.Model, module: nn.Module) -> ir.Model:
    """Return ``model``, which is changed, with the tensors of ``module`` and the shapes that follow from them."""
    weights = _weights(module)
    inferred = [value for node in model.graph for value in node.outputs if value not in model.graph.outputs]
    for value in inferred:
        value.shape = None
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = ir.tensor(weights[name], name=name)
            value.shape = ir.Shape(weights[name].shape)
    return ShapeInferencePass()(model).model


def onnx_from_module(module: nn.Module, *, input_shape: tuple[int, int, int], opset: int) -> ir.Model:
    """Convert one folded module; see :class:`Converter`.

    Raises:
        ExportError: if torch cannot export it, as when it looks at values to choose its way, or only with operators
            that ``opset`` does not have.
        FileNotFoundError: if no folder for temporary files can be written, as when every disk is full.
    """
    tempfile.gettempdir()  # torch needs one too, and what it says without is a traceback about something else
    example = torch.zeros(2, *input_shape)  # a batch of 1 would be taken for a constant
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=max(opset, OLDEST_WRITTEN),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        first: BaseException = error
        while first.__cause__ is not None:  # what went wrong first: the exporter's own message goes on for pages
            first = first.__cause__
        if isinstance(first, OSError):  # a full disk
            raise first from error
        said = next(iter(str(first).strip().splitlines()), "")
        raise ExportError(
            f"torch.onnx.export cannot convert the network ({type(first).__name__}: {said:.200}); a forward must not "
            "choose its way by the values that it computes, nor cast to float32 in an fp16 export"
        ) from error
    assert program is not None  # it returns None only when it is told to write a file
    model = program.model
    assert isinstance(model, ir.Model)
    strip_(model)
    if opset < OLDEST_WRITTEN:
        lower_opset_(model, opset=opset)
    return model


def strip_(model: ir.Model) -> None:
    """Remove metadata: the exporter writes stack traces, with this machine's paths, into every node."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    nodes = [node for graph in graphs for node in graph.all_nodes()]
    values = [value for graph in graphs for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())]
    things: list[Any] = [model, *graphs, *nodes, *values, *(value for node in nodes for value in node.outputs)]
    for thing in things:
        thing.metadata_props.clear()
        thing.doc_string = None


def save_graph(model: ir.Model, directory: Path) -> None:
    """Write ``model.onnx`` and, for the tensors worth it, ``weights.bin`` into ``directory``, which must exist."""
    ir.save(model, directory / GRAPH, external_data=WEIGHTS)


def lower_opset_(model: ir.Model, *, opset: int) -> None:
    """Change ``model``, written in opset ``OLDEST_WRITTEN``, into one of ``opset``, in place.

    For targets whose TensorRT reads no newer one: 8.5 and 8.6 (JetPack 5 and 6.0) read up to 17. The converters of onnx
    1.23 and onnxscript 0.7 fail on reductions, so what differs between the two sets is written back here, and what
    cannot be is refused by name. ONNX's own operator schemas say what differs.

    Raises:
        ExportError: A layer needs an operator that ``opset`` does not have.
    """
    written = model.opset_imports[""]
    for node in list(model.graph.all_nodes()):
        if node.domain not in {"", "ai.onnx"} or _since(node.op_type, written) <= opset:
            continue
        if node.op_type in _REDUCTIONS:
            _axes_as_attribute_(node)
        elif _splits_evenly(node):
            del node.attributes["num_outputs"]  # even parts are what none means
        elif not _same_before_(node, written):
            raise ExportError(
                f"layer {node.name} needs {node.op_type} of opset {_since(node.op_type, written)}, and this target "
                f"reads operators up to opset {opset}; choose a target with a newer TensorRT"
            )
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]  # axes that are attributes now
    model.opset_imports[""] = opset
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])


def _since(operator: str, opset: int) -> int:
    """Return the opset that gave ``operator`` the meaning it has in ``opset``."""
    return int(onnx.defs.get_schema(operator, opset).since_version)


def _axes_as_attribute_(node: ir.Node) -> None:
    """Opset 18 made a reduction's axes an input; before, they are an attribute, and none means all of them."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    node.resize_inputs(1)
    empty = node.attributes.pop("noop_with_empty_axes", None)
    if axes is None:
        if empty is not None and empty.as_int():
            raise ExportError(f"layer {node.name} reduces over no axes, which older operator sets cannot say")
        return
    if axes.const_value is None:
        raise ExportError(f"layer {node.name} computes the axes it reduces over, which older operator sets cannot say")
    node.attributes["axes"] = ir.AttrInt64s("axes", axes.const_value.numpy().tolist())


def _splits_evenly(node: ir.Node) -> bool:
    if node.op_type != "Split" or "num_outputs" not in node.attributes or node.inputs[0] is None:
        return False
    shape, axis = node.inputs[0].shape, node.attributes.get_int("axis", 0)
    size = None if shape is None else shape[axis]
    return isinstance(size, int) and size % len(node.outputs) == 0


def _same_before_(node: ir.Node, opset: int) -> bool:
    """Whether ``node`` means the same in older opsets; attributes that they lack go where they say what is usual."""
    if node.op_type not in _SINCE or len(node.inputs) > _INPUTS_BEFORE[node.op_type]:
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    for name in _SINCE[node.op_type] & set(node.attributes):
        usual = schema.attributes[name].default_value  # without a type if there is none
        if not usual.type or ir.serde.deserialize_attribute(usual).value != node.attributes[name].value:
            return False
        del node.attributes[name]
    return True
