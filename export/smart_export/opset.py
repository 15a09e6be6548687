"""Write a graph in an older operator set than torch writes, for targets whose TensorRT reads no newer one.

``torch.onnx.export(dynamo=True)`` writes opset 18 and newer; TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) read up to 17.
The converters of onnx 1.23 and onnxscript 0.7 fail on reductions, so what differs between the two sets is written back
here, and what cannot be is refused by name. ONNX's own operator schemas say what differs.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from smart_export.errors import ExportError

OLDEST_WRITTEN = 18
"""The oldest operator set that torch writes (torch.onnx.export, dynamo=True)."""

_REDUCTIONS = {
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    "ReduceSumSquare",
}
# Opset 18 gave these more to say, in attributes or inputs; a node that does not say it means what it meant before.
_ATTRIBUTES_SINCE = {
    "Pad": set(),
    "Resize": {"antialias", "axes", "keep_aspect_ratio_policy"},
    "Split": {"num_outputs"},
}
_INPUTS_BEFORE = {"Pad": 3, "Resize": 4, "Split": 2}


def lower_opset_(model: ir.Model, *, opset: int) -> None:
    """Change ``model``, written in opset ``OLDEST_WRITTEN``, into one of ``opset``, in place.

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
    if node.op_type not in _ATTRIBUTES_SINCE or len(node.inputs) > _INPUTS_BEFORE[node.op_type]:
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    for name in _ATTRIBUTES_SINCE[node.op_type] & set(node.attributes):
        usual = schema.attributes[name].default_value  # without a type if there is none
        if not usual.type or ir.serde.deserialize_attribute(usual).value != node.attributes[name].value:
            return False
        del node.attributes[name]
    return True
