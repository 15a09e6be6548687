"""What one graph of a bundle goes through: fold and slice, count, convert, quantise, write, verify.

Each stage takes what the one before it returned; `smart_export.build` calls them in turn and never is called back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from smart_common.roles import Role
from smart_devices import Target
from smart_export.dla import DlaReport, dla_report
from smart_export.evidence import SAMPLES, Evidence
from smart_export.folding import affines_to_convolutions_, fold, fold_dense, padded_masks, to_half_, unmasked
from smart_export.gate import PathGate, path_gate, require_gate
from smart_export.graph import GRAPH, INPUT, OUTPUT, WEIGHTS, Converter, save_graph
from smart_export.layers import NetworkCost, network_cost
from smart_export.precision import FP16, Precision, tolerance_for
from smart_export.proof import Proof, prove
from smart_export.quantise import quantised, recipe_for
from smart_export.timings import Stopwatch
from smart_export.verify import (
    DENSE_IMAGES,
    Agreement,
    agreement,
    engine_scores,
    reference_scores,
    require,
    require_batch_independence,
    verification_images,
)
from smart_runtime.bundle.bundle import GraphBytes
from smart_runtime.bundle.manifest import DENSE, InputSpec, OutputSpec
from smart_runtime.engines import REFERENCE_ENGINE, EngineOptions, create_engine
from smart_train import Checkpoint
from smart_train.masking.accounting import LayerStructure, structure_report
from smart_train.masking.batch_independence import check_batch_independence


@dataclass(frozen=True, kw_only=True, eq=False)
class Export:
    """What all graphs of one bundle have in common.

    Attributes:
        checkpoint: what is exported.
        target: the device it is for.
        precision: of every graph.
        judging: the images that the accuracy gate judges by.
        calibrating: those that int8 graphs are calibrated on, None for other precisions.
        max_drop: what an accuracy may drop by, as a fraction.
        random_images: how many images of noise to verify on.
        stopwatch: told what each stage took.
    """

    checkpoint: Checkpoint
    target: Target
    precision: Precision
    judging: Evidence
    calibrating: Evidence | None
    max_drop: float
    random_images: int
    stopwatch: Stopwatch

    @property
    def input_spec(self) -> InputSpec:
        """The one input of every graph."""
        channels, height, width = self.checkpoint.input_shape
        return InputSpec(name=INPUT, channels=channels, height=height, width=width)

    @property
    def output_spec(self) -> OutputSpec:
        """The one output of every graph."""
        return OutputSpec(name=OUTPUT, classes=len(self.checkpoint.class_names))


@dataclass(frozen=True, eq=False)
class FoldedGraph:
    """A path, or the baseline, without masks and without what they drop.

    Attributes:
        name: of the path, or ``dense``.
        path: whose attacked images it is verified on.
        role: what it is for.
        reference: the network that it must agree with.
        module: the folded network, float32.
        rounding: what float32 costs the network itself, as a fraction of the largest score.
        padding: zero channels kept for the target's alignment, by module name.
        structures: what masks remove of each layer, by module name.
    """

    name: str
    path: str
    role: Role
    reference: nn.Module
    module: fx.GraphModule
    rounding: float = 0.0
    padding: Mapping[str, int] = field(default_factory=dict)
    structures: Mapping[str, LayerStructure] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ConvertedGraph:
    """A graph in the bundle's precision, before it is written; ``folded`` is what it was made from."""

    folded: FoldedGraph
    cost: NetworkCost
    dla: DlaReport
    model: ir.Model


@dataclass(frozen=True)
class ExportedGraph:
    """One graph as it stands in the bundle; file names are relative to it, ``bytes`` counts both files.

    ``gate`` is what its path's accuracies lost; the baseline, which is no classifier, has none.
    """

    name: str
    file: str
    weights: str | None
    bytes: int
    cost: NetworkCost
    agreement: Agreement
    gate: PathGate | None
    dla: DlaReport


def fold_path(export: Export, name: str) -> FoldedGraph:
    """Fold the path ``name`` and slice it to the channels that it keeps, padded to the target's alignment."""
    net = export.checkpoint.net
    keeps = padded_masks(net, path=name, align=export.target.profile.alignment(export.precision))
    with export.stopwatch.phase(f"{name}: fold"):
        exact = fold(net, path=name, keeps=keeps, dtype=torch.float64)
    proof = _prove(export, exact, net.path(name), name=name, path=name)
    return FoldedGraph(
        name,
        path=name,
        role=export.checkpoint.role(name),
        reference=net.path(name),
        module=exact.float(),
        rounding=proof.rounding,
        padding=_padding(export.checkpoint, net.masks(name), keeps),
        structures={layer.name: layer for layer in structure_report(net, path=name)},
    )


def fold_baseline(export: Export) -> FoldedGraph:
    """Fold the unmasked network, which runs where latency is compared and nobody attacks."""
    first = export.checkpoint.net.path_names[0]
    with export.stopwatch.phase(f"{DENSE}: fold"):
        reference = unmasked(export.checkpoint.net, path=first)
        exact = fold_dense(reference, dtype=torch.float64)
    proof = _prove(export, exact, reference, name=DENSE, path=first)
    return FoldedGraph(
        DENSE, path=first, role=Role.CLEAN, reference=reference, module=exact.float(), rounding=proof.rounding
    )


def _prove(export: Export, exact: fx.GraphModule, reference: nn.Module, *, name: str, path: str) -> Proof:
    """Prove a fold in float64, and that it gives an image the same scores in every batch."""
    images = verification_images(export.judging.samples, path=path, random_images=export.random_images)
    with export.stopwatch.phase(f"{name}: prove the fold"):
        proof = prove(exact, reference, images, name=name)
        check_batch_independence(exact, export.checkpoint.input_shape)
    return proof


def _padding(checkpoint: Checkpoint, masks: Sequence[Tensor], keeps: Sequence[Tensor]) -> dict[str, int]:
    padding: dict[str, int] = {}
    for group, mask, keep in zip(checkpoint.net.groups, masks, keeps, strict=True):
        for member in group.members:
            if member.axis != "in":
                added = int(keep.sum() - mask.sum()) * member.indices.shape[1]
                padding[member.module] = padding.get(member.module, 0) + added
    return padding


def convert(export: Export, folded: FoldedGraph, to_onnx: Converter) -> ConvertedGraph:
    """Count what a folded network costs, and turn it into a graph of fp32 or fp16; its module is changed."""
    net, module = export.checkpoint.net, folded.module
    with export.stopwatch.phase(f"{folded.name}: count MACs"):
        cost = network_cost(
            module,
            dense=net.path(net.path_names[0]),
            input_shape=export.checkpoint.input_shape,
            precision=export.precision,
            target=export.target,
            padding=folded.padding,
            structures=folded.structures,
        )
    if export.target.profile.kind == "cpu":
        affines_to_convolutions_(module)
    if export.precision == FP16:
        to_half_(module)
    with export.stopwatch.phase(f"{folded.name}: convert to ONNX"):
        model = to_onnx(module)
    return ConvertedGraph(folded, cost, dla_report(model, cost.layers, target=export.target), model)


def quantise(export: Export, graph: ConvertedGraph) -> ConvertedGraph:
    """Bring a graph to int8 where there are images to calibrate on; in other precisions it stays as it is."""
    if export.calibrating is None:
        return graph
    folded = graph.folded
    images = export.calibrating.calibrating(folded.path, role=folded.role)
    with export.stopwatch.phase(f"{folded.name}: quantise"):
        return replace(graph, model=quantised(graph.model, images, recipe=recipe_for(export.target)))


def write(export: Export, graph: ConvertedGraph, bundle: Path) -> GraphBytes:
    """Write a graph into a new folder of ``bundle``; return what then lies on the disk."""
    directory = bundle / graph.folded.name
    directory.mkdir()
    with export.stopwatch.phase(f"{graph.folded.name}: write"):
        save_graph(graph.model, directory)
    external = (directory / WEIGHTS).exists()
    return GraphBytes(
        model=(directory / GRAPH).read_bytes(),
        weights=(directory / WEIGHTS).read_bytes() if external else None,
        weights_name=WEIGHTS if external else None,
    )


def verify(export: Export, graph: ConvertedGraph, written: GraphBytes) -> ExportedGraph:
    """Run what was written in the reference engine against the network that it was made from.

    The images are those that judge, clean and attacked, then noise, then the checkpoint's own if others judge.

    Raises:
        VerificationError: the scores differ by more than the precision allows.
        GateError: an accuracy of the path drops by more than ``export.max_drop``.
    """
    folded, judging = graph.folded, export.judging
    name, is_path = folded.name, folded.name != DENSE
    most = None if is_path else DENSE_IMAGES
    tolerance = tolerance_for(export.precision, rounding=folded.rounding)
    images = verification_images(judging.samples, path=folded.path, random_images=export.random_images, most=most)
    if judging.source != SAMPLES:
        images += verification_images(export.checkpoint.samples, path=folded.path, random_images=0, most=most)
    with export.stopwatch.phase(f"{name}: verify, reference"):
        expected = reference_scores(folded.reference, images)
    with export.stopwatch.phase(f"{name}: verify, engine"):
        engine = create_engine(
            REFERENCE_ENGINE,
            written,
            inputs=export.input_spec,
            outputs=export.output_spec,
            options=EngineOptions(threads=1),
        )
        got = engine_scores(engine, images)
        require_batch_independence(engine, export.checkpoint.input_shape, name=name, tolerance=tolerance)
        engine.close()
    found = agreement(expected, got, tolerance=tolerance)
    require(found, name=name, rounding=folded.rounding)
    gate = None
    if is_path:
        count = len(images[0])
        gate = path_gate(
            judging.samples.labels.numpy(),
            clean=(expected[:count], got[:count]),
            adversarial=(expected[count : 2 * count], got[count : 2 * count]),
        )
        require_gate(gate, name=name, max_drop=export.max_drop)
    return ExportedGraph(
        name=name,
        file=f"{name}/{GRAPH}",
        weights=None if written.weights is None else f"{name}/{WEIGHTS}",
        bytes=len(written.model) + len(written.weights or b""),
        cost=graph.cost,
        agreement=found,
        gate=gate,
        dla=graph.dla,
    )
