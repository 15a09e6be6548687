"""What one graph of a bundle goes through: fold and slice, count, convert, quantise, write, verify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from smart_common.roles import Role
from smart_devices import Target
from smart_export.dla import DlaReport, dla_report
from smart_export.evidence import SAMPLES, Evidence
from smart_export.folding import affines_to_convolutions_, fold, fold_dense, padded_masks, to_half_, unmasked
from smart_export.graph import GRAPH, INPUT, OUTPUT, WEIGHTS, Converter, save_graph
from smart_export.layers import NetworkCost, network_cost
from smart_export.precision import FP16, FP32, TOLERANCES, Precision, tolerance_for
from smart_export.proof import prove, require_batch_independence
from smart_export.quantise import quantised, recipe_for
from smart_export.timings import Stopwatch
from smart_export.verify import (
    DENSE_IMAGES,
    Images,
    PathGate,
    Scores,
    Undecided,
    agreement,
    engine_scores,
    path_gate,
    reference_scores,
    require,
    require_gate,
    verification_images,
)
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import DENSE, InputSpec, OutputSpec
from smart_runtime.engines import REFERENCE_ENGINE, Engine, EngineOptions, create_engine
from smart_runtime.reference import SCORES, ParityResult, npy_bytes
from smart_train import Checkpoint
from smart_train.masking.accounting import LayerStructure, structure_report


@dataclass(frozen=True, kw_only=True, eq=False)
class Export:
    """What all graphs of one bundle have in common.

    The accuracy gate judges by ``judging``, by whose images an accuracy may drop by the fraction ``max_drop``, and
    ``undecided`` says what happens where they are too few; int8 graphs, and no others, are calibrated on
    ``calibrating``; ``random_images`` of noise are verified on too. ``reference_images``, float32 (N, C, H, W), are
    what every graph of the bundle answers for devices to compare with.
    """

    checkpoint: Checkpoint
    target: Target
    precision: Precision
    judging: Evidence
    calibrating: Evidence | None
    max_drop: float
    undecided: Undecided
    random_images: int
    reference_images: Images
    stopwatch: Stopwatch

    @property
    def verified(self) -> bool:
        """Whether every score of a graph is held against its path's; of int8 the accuracies alone are."""
        return TOLERANCES[self.precision] is not None

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
    """A path, or the baseline, ``dense``, without masks and without what they drop, in float32.

    ``path`` is the one whose attacked images it is verified on, and ``reference`` what it must agree with. By module
    name, ``padding`` says how many zero channels were kept for the target's alignment, and ``structures`` what masks
    remove. ``rounding`` is what float32 costs the network itself, as a fraction of the largest score.
    """

    name: str
    path: str
    role: Role
    reference: nn.Module
    module: fx.GraphModule
    rounding: float = 0.0
    padding: Mapping[str, int] = field(default_factory=dict)
    structures: Mapping[str, LayerStructure] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportedGraph:
    """One graph as it stands in the bundle; file names are relative to it, ``bytes`` counts both files.

    ``gate`` is what its path's accuracies lost, ``judged`` the same with the verdicts as plain values, ``warnings`` a
    sentence for each that was not decided; the baseline, which is no classifier, has none. ``scores`` is the file of
    what it answered for the reference images.
    """

    name: str
    file: str
    weights: str | None
    bytes: int
    cost: NetworkCost
    agreement: ParityResult
    gate: PathGate | None
    dla: DlaReport
    judged: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    scores: str | None = None


def fold_path(export: Export, name: str) -> FoldedGraph:
    """Fold the path ``name`` and slice it to the channels that it keeps, padded to the target's alignment."""
    net = export.checkpoint.net
    keeps = padded_masks(net, path=name, align=export.target.profile.alignment(export.precision))
    with export.stopwatch.phase(f"{name}: fold"):
        exact = fold(net, path=name, keeps=keeps, dtype=torch.float64)
    module, rounding = _proved(export, exact, net.path(name), name=name, path=name)
    return FoldedGraph(
        name,
        path=name,
        role=export.checkpoint.role(name),
        reference=net.path(name),
        module=module,
        rounding=rounding,
        padding=_padding(export.checkpoint, net.masks(name), keeps),
        structures={layer.name: layer for layer in structure_report(net, path=name)},
    )


def fold_baseline(export: Export) -> FoldedGraph:
    """Fold the unmasked network, which runs where latency is compared and nobody attacks."""
    first = export.checkpoint.net.path_names[0]
    with export.stopwatch.phase(f"{DENSE}: fold"):
        reference = unmasked(export.checkpoint.net, path=first)
        exact = fold_dense(reference, dtype=torch.float64)
    module, rounding = _proved(export, exact, reference, name=DENSE, path=first)
    return FoldedGraph(DENSE, path=first, role=Role.CLEAN, reference=reference, module=module, rounding=rounding)


def _proved(
    export: Export, exact: fx.GraphModule, reference: nn.Module, *, name: str, path: str
) -> tuple[fx.GraphModule, float]:
    """Prove a fold in float64, and return it in float32 with what that costs the network itself."""
    images = verification_images(export.judging.samples, path=path, random_images=export.random_images)
    shape = export.checkpoint.input_shape
    with export.stopwatch.phase(f"{name}: prove the fold"):
        rounding = prove(exact, reference, images, name=name).rounding
        module = exact.float()
        tolerance = tolerance_for(FP32, rounding=rounding)
        require_batch_independence(module, shape, name=name, tolerance=tolerance, rounding=rounding)
    return module, rounding


def _padding(checkpoint: Checkpoint, masks: Sequence[Tensor], keeps: Sequence[Tensor]) -> dict[str, int]:
    padding: Counter[str] = Counter()
    for group, mask, keep in zip(checkpoint.net.groups, masks, keeps, strict=True):
        for member in group.members:
            if member.axis != "in":
                padding[member.module] += int(keep.sum() - mask.sum()) * member.indices.shape[1]
    return padding


def export_graph(export: Export, folded: FoldedGraph, *, to_onnx: Converter, bundle: Path) -> ExportedGraph:
    """Count what a folded network costs, make it a graph, write that into a new folder of ``bundle``, and verify it.

    The module of ``folded`` is changed.

    Raises:
        VerificationError: the scores differ by more than the precision allows.
        GateError: an accuracy of the path drops by more than ``export.max_drop``, or may and that is refused.
    """
    net, module, name, phase = export.checkpoint.net, folded.module, folded.name, export.stopwatch.phase
    with phase(f"{name}: count MACs"):
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
    with phase(f"{name}: convert to ONNX"):
        model = to_onnx(module)
    dla = dla_report(model, cost.layers, target=export.target)
    if export.calibrating is not None:
        images = export.calibrating.calibrating(folded.path, role=folded.role)
        with phase(f"{name}: quantise"):
            model = quantised(model, images, recipe=recipe_for(export.target))
    directory = bundle / name
    directory.mkdir()
    with phase(f"{name}: write"):
        save_graph(model, directory)
    written = _written(directory / GRAPH, directory / WEIGHTS if (directory / WEIGHTS).exists() else None)
    found, gate, scores = _verified(export, folded, written)
    (directory / SCORES).write_bytes(npy_bytes(scores))
    judged: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    if gate is not None:
        allowed, verified = export.max_drop, export.verified
        warnings = require_gate(gate, name=name, max_drop=allowed, undecided=export.undecided, verified=verified)
        judged = gate.record(max_drop=allowed, verified=verified)
    return ExportedGraph(
        name=name,
        file=f"{name}/{GRAPH}",
        weights=None if written.weights is None else f"{name}/{WEIGHTS}",
        bytes=len(written.model) + len(written.weights or b""),
        cost=cost,
        agreement=found,
        gate=gate,
        dla=dla,
        judged=judged,
        warnings=warnings,
        scores=f"{name}/{SCORES}",
    )


def written_scores(graph: ExportedGraph, batches: Sequence[Images], *, export: Export, bundle: Path) -> Scores:
    """Return the scores (N, classes) that a graph of ``bundle`` gives in the reference engine for all ``batches``."""
    written = _written(bundle / graph.file, None if graph.weights is None else bundle / graph.weights)
    engine = _reference_engine(export, written)
    try:
        return engine_scores(engine, batches, classes=export.output_spec.classes, name=graph.name)
    finally:
        engine.close()


def _written(file: Path, weights: Path | None) -> GraphBytes:
    if weights is None:
        return GraphBytes(model=file.read_bytes(), weights=None, weights_name=None)
    return GraphBytes(model=file.read_bytes(), weights=weights.read_bytes(), weights_name=weights.name)


def _reference_engine(export: Export, written: GraphBytes) -> Engine:
    return create_engine(
        REFERENCE_ENGINE,
        written,
        inputs=export.input_spec,
        outputs=export.output_spec,
        options=EngineOptions(threads=1),
    )


def _verified(export: Export, folded: FoldedGraph, written: GraphBytes) -> tuple[ParityResult, PathGate | None, Scores]:
    """Run what was written in the reference engine against the network that it was made from.

    The images are those that judge, clean and attacked, then noise, then the checkpoint's own if others judge. The
    scores that come out too are those of the reference images.
    """
    name, judging = folded.name, export.judging
    most = DENSE_IMAGES if name == DENSE else None
    tolerance = tolerance_for(export.precision, rounding=folded.rounding)
    images = verification_images(judging.samples, path=folded.path, random_images=export.random_images, most=most)
    if judging.source != SAMPLES:
        images += verification_images(export.checkpoint.samples, path=folded.path, random_images=0, most=most)
    with export.stopwatch.phase(f"{name}: verify, reference"):
        expected = reference_scores(folded.reference, images)
    with export.stopwatch.phase(f"{name}: verify, engine"):
        engine = _reference_engine(export, written)
        got = engine_scores(engine, images, classes=export.output_spec.classes, name=name)
        require_batch_independence(
            engine, export.checkpoint.input_shape, name=name, tolerance=tolerance, rounding=folded.rounding
        )
        scores = engine_scores(engine, [export.reference_images], classes=export.output_spec.classes, name=name)
        engine.close()
    found = agreement(expected, got, tolerance=tolerance)
    require(found, name=name, rounding=folded.rounding)
    if name == DENSE:
        return found, None, scores
    count = len(images[0])
    gate = path_gate(
        judging.samples.labels.numpy(),
        clean=(expected[:count], got[:count]),
        adversarial=(expected[count : 2 * count], got[count : 2 * count]),
    )
    return found, gate, scores
