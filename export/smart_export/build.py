"""From a checkpoint to a bundle: fold, convert, verify, then write it whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from smart_common.version import version
from smart_devices import Target
from smart_export.dla import DlaReport, dla_report
from smart_export.errors import ExportError
from smart_export.evidence import SAMPLES, Evidence, divide
from smart_export.expected import expected_latency
from smart_export.fold import affines_to_convolutions_, fold, fold_dense, padded_masks, unmasked
from smart_export.gate import MAX_DROP, PathGate, check_max_drop, path_gate, require_gate
from smart_export.graph import GRAPH, INPUT, OUTPUT, WEIGHTS, Converter, save_graph
from smart_export.layers import NetworkCost, network_cost
from smart_export.precision import FP16, FP32, TOLERANCES, Precision, check_precision, to_half_
from smart_export.publish import publish, staged
from smart_export.quantise import quantisation_record, quantised, recipe_for
from smart_export.rtx import Plan, Source, build_plans
from smart_export.signing import public_half, sign_bundle_
from smart_export.target_rules import check_structure, target_record
from smart_export.timings import Stopwatch
from smart_export.verify import (
    DENSE_IMAGES,
    RANDOM_IMAGES,
    Agreement,
    Images,
    Scores,
    agreement,
    engine_scores,
    reference_scores,
    require,
    verification_images,
)
from smart_runtime.bundle.bundle import CHECKSUMS, MANIFEST, SIGNATURE, Bundle, GraphBytes, write_checksums
from smart_runtime.bundle.checksums import parse_checksums
from smart_runtime.bundle.files import list_files
from smart_runtime.bundle.manifest import DENSE, FORMAT_VERSION, InputSpec, OutputSpec
from smart_runtime.engines import REFERENCE_ENGINE, EngineOptions, create_engine
from smart_runtime.errors import BundleError
from smart_train import Checkpoint
from smart_train.masking.accounting import Densities, LayerStructure, densities, structure_report

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

BASELINES = (DENSE, "none")


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


@dataclass(frozen=True)
class BuildResult:
    """A written bundle.

    Attributes:
        bundle: its directory.
        target: the device it is for.
        precision: of every graph.
        judged: which images the accuracy gate judged by.
        max_drop: what it let an accuracy drop by, as a fraction.
        quantisation: how graphs became int8, None for other precisions.
        paths: one graph a path.
        baseline: the unmasked network, or None.
        plans: engine plans by TensorRT-RTX.
        densities: how much each path uses.
        signer: the fingerprint of the key that signed it, None without one.
        seconds: what the build took.
    """

    bundle: Path
    target: Target
    precision: Precision
    judged: dict[str, Any]
    max_drop: float
    quantisation: dict[str, Any] | None
    paths: dict[str, ExportedGraph]
    baseline: ExportedGraph | None
    plans: tuple[Plan, ...]
    densities: Densities
    signer: str | None
    seconds: float


def _ignore(_: str) -> None:
    return


def build_bundle(
    checkpoint: Checkpoint,
    *,
    output: Path,
    target: Target,
    precision: str = FP32,
    baseline: bool = True,
    default_path: str | None = None,
    judge: Evidence | None = None,
    calibrate: Evidence | None = None,
    max_drop: float = MAX_DROP,
    random_images: int = RANDOM_IMAGES,
    rtx: Sequence[str] = (),
    allow_slow_structure: bool = False,
    force: bool = False,
    sign: Ed25519PrivateKey | None = None,
    on_step: Callable[[str], None] = _ignore,
    stopwatch: Stopwatch | None = None,
) -> BuildResult:
    """Write the bundle of ``checkpoint`` for ``target``.

    Every graph runs in ONNX Runtime against its masked path before the bundle appears under its name: scores within the
    precision's tolerance, accuracies above the gate.

    Args:
        checkpoint: what to export.
        output: the bundle's directory.
        target: decides alignment, opset, and how int8 graphs are quantised.
        precision: ``fp32``, ``fp16`` or ``int8``, of all graphs; input and output are float32 in each.
        baseline: add the unmasked network for comparison.
        default_path: the path a model starts on; the first one (clean) by default.
        judge: labelled images to judge by (`smart_export.evidence`); the checkpoint's samples by default, for int8
            without ``calibrate`` one half of them.
        calibrate: those that int8 graphs are calibrated on; by default the checkpoint's samples, without ``judge`` the
            other half of them. No other precision uses them.
        max_drop: what any accuracy of a path may lose against its masked path, as a fraction in [0, 1].
        random_images: how many images of noise to verify on beside those that judge.
        rtx: add engine plans for GPUs of these compute capabilities, from `smart_export.rtx.parse_capabilities`.
        allow_slow_structure: export zeros in a pattern that the target gains nothing from.
        force: replace a bundle that exists.
        sign: the key to sign it with, from `smart_export.signing.load_private_key`.
        on_step: called after each graph and each plan, with its name.
        stopwatch: told what each phase took.

    Raises:
        ExportError: if ``output`` cannot be used or has no room, an argument is none of those above, the target gains
            nothing from the checkpoint's structure, or TensorRT-RTX refuses a graph.
        MissingExtraError: if ``rtx`` is asked for and its library is not installed.
        VerificationError: if a graph does not agree with its path, or as GateError, if it classifies worse; nothing is
            left behind.
    """
    started = time.perf_counter()
    names = checkpoint.net.path_names
    default_path = default_path or names[0]
    if default_path not in names:
        raise ExportError(f"expected a default path out of {', '.join(names)}, got {default_path!r}; use one of them")
    check_max_drop(max_drop)
    known = check_precision(precision)
    check_output(output, force=force)
    check_structure(checkpoint.net.structure, target=target, allow_slow=allow_slow_structure)
    stopwatch = stopwatch or Stopwatch()
    judging, calibrating = divide(checkpoint, precision=known, judge=judge, calibrate=calibrate)
    builder = _Builder(
        checkpoint,
        target=target,
        precision=known,
        judging=judging,
        calibrating=calibrating,
        max_drop=max_drop,
        random_images=random_images,
        stopwatch=stopwatch,
    )
    place = Path(os.path.abspath(output))  # noqa: PTH100  # unlike resolve, it leaves links alone; "." gets a name
    with staged(place) as staging:
        paths = {}
        for name in names:
            paths[name] = builder.path(name, staging)
            on_step(name)
        dense = None
        if baseline:
            dense = builder.dense(staging)
            on_step(DENSE)
        plans = []
        if rtx:
            with stopwatch.phase("TensorRT-RTX"):
                for plan in builder.plans([*paths.values(), *([] if dense is None else [dense])], staging, rtx=rtx):
                    plans.append(plan)
                    on_step(plan.file)
        with stopwatch.phase("manifest and checksums"):
            manifest = builder.manifest(paths, dense, plans, default_path=default_path)
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            write_checksums(staging)
            if sign is not None:
                sign_bundle_(staging, sign)
            # What cannot be read back, with the public half of its key, is not published.
            written = Bundle.open(staging, trust=None if sign is None else public_half(sign))
            written.verify()
        with stopwatch.phase("publish"):
            publish(staging, place, force=force)
    return BuildResult(
        bundle=output,
        target=target,
        precision=known,
        judged=judging.record(),
        max_drop=max_drop,
        quantisation=builder.quantisation,
        paths=paths,
        baseline=dense,
        plans=tuple(plans),
        densities=builder.densities,
        signer=written.signer,
        seconds=time.perf_counter() - started,
    )


def check_output(output: Path, *, force: bool) -> None:
    """Raise ExportError unless a bundle may be written to ``output``."""
    if not output.parent.is_dir():
        raise ExportError(f"expected an existing folder for {output}, got none; create {output.parent} first")
    if not os.path.lexists(output):
        return
    if not force:
        raise ExportError(
            f"expected no file or folder {output}, got one; use --force to replace a bundle, or another -o"
        )
    if not _is_replaceable(output):
        raise ExportError(
            f"expected a bundle to replace at {output}, got something else, which stays as it is; use another -o"
        )


def _is_replaceable(output: Path) -> bool:
    """Whether ``output`` is an empty folder, or one with nothing but the files of a bundle, whole or damaged."""
    if output.is_symlink() or not output.is_dir():
        return False
    try:
        present = set(list_files(output)) - {CHECKSUMS, SIGNATURE}
        if not any(output.iterdir()):
            return True
        named = parse_checksums((output / CHECKSUMS).read_bytes())
    except (BundleError, OSError):
        return False
    return MANIFEST in named and present <= set(named)


class _Builder:
    """Makes the parts of one bundle."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        target: Target,
        precision: Precision,
        judging: Evidence,
        calibrating: Evidence | None,
        max_drop: float,
        random_images: int,
        stopwatch: Stopwatch,
    ) -> None:
        self._checkpoint = checkpoint
        self._target = target
        self._precision: Precision = precision
        self._judging = judging
        self._calibrating = calibrating
        self._max_drop = max_drop
        self._random_images = random_images
        self._stopwatch = stopwatch
        self._align = target.profile.alignment(precision)
        self._recipe = recipe_for(target)
        self.quantisation = None if calibrating is None else quantisation_record(self._recipe, calibrating.record())
        self._onnx = Converter(input_shape=checkpoint.input_shape, opset=target.opset)
        with stopwatch.phase("count parameters"):
            self.densities = densities(checkpoint.net)

    def path(self, name: str, staging: Path) -> ExportedGraph:
        net = self._checkpoint.net
        masks = net.masks(name)
        keeps = padded_masks(net, path=name, align=self._align)
        with self._stopwatch.phase(f"{name}: fold"):
            folded = fold(net, path=name, keeps=keeps)
        images = self._images(name)
        graph, expected, got = self._graph(
            name,
            folded,
            staging,
            reference=net.path(name),
            images=images,
            padding=self._padding(masks, keeps),
            structures={layer.name: layer for layer in structure_report(net, path=name)},
        )
        count = len(images[0])
        gate = path_gate(
            self._judging.samples.labels.numpy(),
            clean=(expected[:count], got[:count]),
            adversarial=(expected[count : 2 * count], got[count : 2 * count]),
        )
        require_gate(gate, name=name, max_drop=self._max_drop)
        return replace(graph, gate=gate)

    def dense(self, staging: Path) -> ExportedGraph:
        name = self._checkpoint.net.path_names[0]
        with self._stopwatch.phase(f"{DENSE}: fold"):
            reference = unmasked(self._checkpoint.net, path=name)
            folded = fold_dense(reference)
        images = self._images(name, most=DENSE_IMAGES)
        graph, _, _ = self._graph(DENSE, folded, staging, reference=reference, images=images, padding={}, structures={})
        return graph

    def _images(self, path: str, *, most: int | None = None) -> list[Images]:
        """Return batches to verify on: first those that judge, clean and attacked, then noise."""
        batches = verification_images(self._judging.samples, path=path, random_images=self._random_images, most=most)
        if self._judging.source == SAMPLES:
            return batches
        own = verification_images(self._checkpoint.samples, path=path, random_images=0, most=most)
        return [*batches, *own]

    def _padding(self, masks: Sequence[Tensor], keeps: Sequence[Tensor]) -> dict[str, int]:
        padding: dict[str, int] = {}
        for group, mask, keep in zip(self._checkpoint.net.groups, masks, keeps, strict=True):
            for member in group.members:
                if member.axis != "in":
                    added = int(keep.sum() - mask.sum()) * member.indices.shape[1]
                    padding[member.module] = padding.get(member.module, 0) + added
        return padding

    def _graph(
        self,
        name: str,
        folded: fx.GraphModule,
        staging: Path,
        *,
        reference: nn.Module,
        images: Sequence[Images],
        padding: dict[str, int],
        structures: dict[str, LayerStructure],
    ) -> tuple[ExportedGraph, Scores, Scores]:
        """Write one graph and verify it; return it with the scores of ``reference`` and its own for ``images``."""
        phase = self._stopwatch.phase
        with phase(f"{name}: count MACs"):
            cost = network_cost(
                folded,
                dense=self._checkpoint.net.path(self._checkpoint.net.path_names[0]),
                input_shape=self._checkpoint.input_shape,
                precision=self._precision,
                target=self._target,
                padding=padding,
                structures=structures,
            )
        if self._target.profile.kind == "cpu":
            affines_to_convolutions_(folded)
        if self._precision == FP16:
            to_half_(folded)
        with phase(f"{name}: convert to ONNX"):
            model = self._onnx(folded)
        dla = dla_report(model, cost.layers, target=self._target)
        if self._calibrating is not None:
            with phase(f"{name}: quantise"):
                model = quantised(model, self._calibrating.calibrating(name), recipe=self._recipe)
        directory = staging / name
        directory.mkdir()
        with phase(f"{name}: write"):
            save_graph(model, directory)
        external = (directory / WEIGHTS).exists()
        with phase(f"{name}: verify, reference"):
            expected = reference_scores(reference, images)
        with phase(f"{name}: verify, engine"):
            engine = create_engine(
                REFERENCE_ENGINE,
                GraphBytes(
                    model=(directory / GRAPH).read_bytes(),
                    weights=(directory / WEIGHTS).read_bytes() if external else None,
                    weights_name=WEIGHTS if external else None,
                ),
                inputs=self.input_spec,
                outputs=self.output_spec,
                options=EngineOptions(threads=1),
            )
            got = engine_scores(engine, images)
            engine.close()
        found = agreement(expected, got, tolerance=TOLERANCES[self._precision])
        require(found, name=name)
        graph = ExportedGraph(
            name=name,
            file=f"{name}/{GRAPH}",
            weights=f"{name}/{WEIGHTS}" if external else None,
            bytes=sum(file.stat().st_size for file in directory.iterdir()),
            cost=cost,
            agreement=found,
            gate=None,
            dla=dla,
        )
        return graph, expected, got

    def plans(self, graphs: Sequence[ExportedGraph], staging: Path, *, rtx: Sequence[str]) -> Iterator[Plan]:
        sources = [
            Source(
                graph.name,
                staging / graph.file,
                two_four=any(layer.why_not_two_four is None for layer in graph.cost.layers),
            )
            for graph in graphs
        ]
        return build_plans(sources, folder=staging, inputs=self.input_spec, capabilities=rtx)

    @property
    def input_spec(self) -> InputSpec:
        channels, height, width = self._checkpoint.input_shape
        return InputSpec(name=INPUT, channels=channels, height=height, width=width)

    @property
    def output_spec(self) -> OutputSpec:
        return OutputSpec(name=OUTPUT, classes=len(self._checkpoint.class_names))

    def manifest(
        self,
        paths: dict[str, ExportedGraph],
        dense: ExportedGraph | None,
        plans: Sequence[Plan],
        *,
        default_path: str,
    ) -> dict[str, Any]:
        """Return the package description that docs/formats.md lays down."""
        checkpoint = self._checkpoint
        channels, height, width = checkpoint.input_shape
        ours = {
            "format_version": FORMAT_VERSION,
            "created_by": f"smart-edge {version()}",
            "target": target_record(self._target),
            "precision": self._precision,
            "quantization": self.quantisation,
            "gate": {**self._judging.record(), "max_drop": self._max_drop},
            "default_path": default_path,
            "input": {
                "name": INPUT,
                "dtype": "float32",
                "layout": "NCHW",
                "channels": channels,
                "height": height,
                "width": width,
                "range": [0.0, 1.0],
            },
            "output": {"name": OUTPUT, "classes": len(checkpoint.class_names)},
            "preprocessing": {
                "colour": {1: "L", 3: "RGB"}.get(channels),
                "resize": "shorter-side",
                "interpolation": "bilinear",
                "crop": "center",
            },
            "class_names": list(checkpoint.class_names),
            "paths": {name: self._path_record(graph) for name, graph in paths.items()},
            "baseline": None if dense is None else {"name": dense.name, **_graph_record(dense)},
            "plans": [plan.record for plan in plans],
            "training": checkpoint.training,
        }
        variant = {"ep": "CPUExecutionProvider", "executor_info": {"ort": {"model_file": GRAPH}}}
        return {
            "schema_version": "1.0",
            "package_name": f"{checkpoint.architecture}-smart",
            "package_version": version(),
            "components": {name: {"variants": {"cpu": {**variant, "variant_directory": name}}} for name in paths},
            "additional_metadata": {"smart_edge": ours},
        }

    def _path_record(self, graph: ExportedGraph) -> dict[str, Any]:
        return {
            "density": self.densities.kept[graph.name],
            "parameter_density": self.densities.parameters[graph.name],
            **_graph_record(graph),
            "metrics": self._checkpoint.metrics[graph.name],
            "gate": None if graph.gate is None else graph.gate.record(),
        }


def _graph_record(graph: ExportedGraph) -> dict[str, Any]:
    return {
        "file": graph.file,
        "weights": graph.weights,
        "parameters": graph.cost.parameters,
        "macs": graph.cost.macs,
        "dense_macs": graph.cost.dense_macs,
        "bytes": graph.bytes,
        "tolerance": graph.agreement.tolerance,
        "max_rel_diff": graph.agreement.max_rel_diff,
        "argmax_agreement": graph.agreement.argmax_agreement,
        "dla": graph.dla.record,
        "layers": layer_records(graph),
    }


def layer_records(graph: ExportedGraph) -> list[dict[str, Any]]:
    """Return what the manifest and a report say of each layer."""
    return [{**asdict(layer), "why_not_dla": graph.dla.why_not[layer.name]} for layer in graph.cost.layers]


def summary(result: BuildResult) -> dict[str, Any]:
    """Return what was built as plain values, for ``--json`` and tables."""

    def row(graph: ExportedGraph) -> dict[str, Any]:
        record = _graph_record(graph)
        del record["layers"]
        expected = expected_latency(graph.cost, target=result.target, precision=result.precision)
        return {**record, "verified_on": graph.agreement.images, "expected": expected.as_json()}

    return {
        "bundle": str(result.bundle),
        "target": result.target.name,
        "profile": result.target.profile.name,
        "precision": result.precision,
        "quantization": result.quantisation,
        "gate": {name: graph.gate.record() for name, graph in result.paths.items() if graph.gate is not None},
        "judged_by": {**result.judged, "max_drop": result.max_drop},
        "signed_by": result.signer,
        "seconds": result.seconds,
        "union_density": result.densities.union,
        "paths": {
            name: {
                "density": result.densities.kept[name],
                "parameter_density": result.densities.parameters[name],
                **row(graph),
            }
            for name, graph in result.paths.items()
        },
        "baseline": None if result.baseline is None else {"name": result.baseline.name, **row(result.baseline)},
        "plans": [{**plan.record, "seconds": plan.seconds} for plan in result.plans],
    }
