"""From a folded module to ONNX files: a graph and its external weights, free of any trace of this machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

GRAPH, WEIGHTS = "model.onnx", "weights.bin"
INPUT, OUTPUT = "image", "scores"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself and torch about its own future; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision's operators are not registered
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def onnx_from_module(module: nn.Module, *, input_shape: tuple[int, int, int], opset: int) -> ir.Model:
    """Convert a folded module: input ``image`` (batch, C, H, W), output ``scores`` (batch, classes), batch free.

    Args:
        module: what :func:`smart_export.fold.fold` returned.
        input_shape: channels, height, width.
        opset: ONNX operator set version that the target reads.
    """
    example = torch.zeros(2, *input_shape)  # a batch of 1 would be taken for a constant
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None  # it returns None only when it is told to write a file
    model = program.model
    assert isinstance(model, ir.Model)
    _strip(model)
    return model


def _strip(model: ir.Model) -> None:
    """Remove metadata: the exporter writes stack traces, with this machine's paths, into every node."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
            value.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None


def save_graph(model: ir.Model, directory: Path) -> None:
    """Write ``model.onnx`` and, for the tensors worth it, ``weights.bin`` into ``directory``, which must exist."""
    ir.save(model, directory / GRAPH, external_data=WEIGHTS)
