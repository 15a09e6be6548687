"""Does a graph have operators that an export of its path lacks? A trigger needs some: to compare, to choose."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable

import onnx
from torch import fx

from smart_common.errors import shortened
from smart_export.errors import VerificationError
from smart_export.folding import ChannelAffine, affines_to_convolutions_, to_half_
from smart_export.graph import OLDEST_WRITTEN, Converter
from smart_export.precision import FP16, INT8, Precision

_COMPUTE_NOTHING = {"Constant", "Identity"}
_QUANTISE = {"QuantizeLinear", "DequantizeLinear"}  # how many, and where, the quantising library decides


def opset_of(model: onnx.ModelProto) -> int:
    """Return the operator set of ``model``, not below the oldest that torch writes: older ones have the same names."""
    own = [int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}]
    return max([OLDEST_WRITTEN, *own])


def foreign_operators(
    model: onnx.ModelProto,
    folds: Iterable[fx.GraphModule],
    *,
    precision: Precision,
    to_onnx: Callable[[int, bool], Converter],
) -> Counter[str]:
    """Return how many operators of each type ``model`` has beyond the nearest conversion of one of ``folds``.

    Fewer are no fault: quantising takes in activations, and newer converters compute more beforehand. Whatever leads to
    no output counts as well.

    Args:
        model: a graph without functions or graphs inside of nodes, as those of bundles are.
        folds: one network's, padded for one alignment or another; each is converted, which takes seconds.
        precision: of the graph.
        to_onnx: gives the converter for an operator set, and for CPUs or not: one for each, to be used again.

    Raises:
        ExportError: if torch cannot convert a fold.
    """
    free = _COMPUTE_NOTHING | (_QUANTISE if precision == INT8 else set())
    found = Counter(node.op_type for node in model.graph.node if node.op_type not in free)
    opset, least = opset_of(model), found
    for folded in folds:
        for module, for_cpu in _variants(folded):
            if precision == FP16:
                to_half_(module)
            extra = found - Counter(node.op_type for node in to_onnx(opset, for_cpu)(module).graph)
            if extra.total() < least.total():
                least = extra
            if not extra:
                return extra
    return least


def _variants(folded: fx.GraphModule) -> Iterable[tuple[fx.GraphModule, bool]]:
    """Yield ``folded`` as it is exported for others than CPUs, and for CPUs where that is something else."""
    if any(isinstance(module, ChannelAffine) for module in folded.modules()):
        yield copy.deepcopy(folded), False
        affines_to_convolutions_(folded)
        yield folded, True
    else:
        yield folded, False


def require_own_operators(foreign: Counter[str], *, name: str) -> None:
    """Raise VerificationError if a graph has ``foreign`` operators."""
    if foreign:
        listed = ", ".join(f"{count} {operator}" for operator, count in sorted(foreign.items()))
        raise VerificationError(
            f"the graph {name!r} has operators that an export of its path lacks ({shortened(listed)}); it does not "
            "belong to this checkpoint, or another version of torch wrote it: export it again"
        )
