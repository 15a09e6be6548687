"""From a checkpoint to a bundle: load, fold, convert, quantise and verify each graph, then publish all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smart_common.mask_info import MaskInfo
from smart_common.robustness import warnings_of_metrics
from smart_devices import Profile, Target, resolve_target
from smart_export.bundle_manifest import check_structure, gate_terms, manifest_record, quantisation
from smart_export.errors import ExportError
from smart_export.evidence import Evidence, divide
from smart_export.graph import Converter
from smart_export.mixing import ExportedMix, WantedMixes, check_mixes, export_mixes
from smart_export.operating_points import measured
from smart_export.precision import FP32, MAX_DROP, Precision, check_precision
from smart_export.publish import check_output, publish, staged
from smart_export.rtx import Plan, build_plans
from smart_export.signing import sign_bundle_
from smart_export.sources import CheckpointLike, Sources, read_sources
from smart_export.stages import Export, ExportedGraph, export_graph, fold_baseline, fold_path
from smart_export.timings import Stopwatch
from smart_export.verify import RANDOM_IMAGES, check_max_drop, check_undecided
from smart_runtime.bundle.bundle import MANIFEST, Bundle, write_checksums
from smart_runtime.bundle.manifest import DENSE
from smart_runtime.bundle.mixes import FittedTemperature
from smart_runtime.bundle.signatures import public_half
from smart_runtime.reference import INPUTS, npy_bytes
from smart_runtime.tripwire.outlook import Outlook
from smart_train import Checkpoint
from smart_train.calibration import temperature_of
from smart_train.checkpoint.described_masks import describe_masks
from smart_train.masking.accounting import Densities

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class BuildResult:
    """A written bundle.

    Attributes:
        bundle: its directory.
        target, precision: the device, and the precision of every graph.
        judged: which images the accuracy gate judged by, what was allowed, and what happens where they are too few.
        max_drop: what it let an accuracy drop by, as a fraction.
        warnings: a sentence for each accuracy that the gate could not decide about, and each reason not to rely on a
            path under attack.
        dense_control: what the dense control measured, by path; None without one.
        quantisation: how graphs became int8, None for other precisions.
        paths, baseline: one graph a path, and that of the unmasked network or None.
        plans: engine plans by TensorRT-RTX.
        densities: how much each path uses.
        masks: how they were found, and what the paths' have in common; None of two separate networks.
        outlook: what to expect of the tripwire; None where the bundle has no operating points.
        mixes: operating points between two paths.
        temperatures: what calibrates each path's scores.
        signer: the fingerprint of the key that signed it, None without one.
        seconds: what the build took.
    """

    bundle: Path
    target: Target
    precision: Precision
    judged: dict[str, Any]
    max_drop: float
    warnings: tuple[str, ...]
    dense_control: Mapping[str, Mapping[str, Any]] | None
    quantisation: dict[str, Any] | None
    paths: dict[str, ExportedGraph]
    baseline: ExportedGraph | None
    plans: tuple[Plan, ...]
    densities: Densities
    masks: MaskInfo | None
    outlook: Outlook | None
    mixes: tuple[ExportedMix, ...]
    temperatures: Mapping[str, FittedTemperature]
    signer: str | None
    seconds: float


def build_bundle(
    checkpoint: CheckpointLike | Mapping[str, CheckpointLike] | Sources,
    *,
    output: str | os.PathLike[str],
    target: str | os.PathLike[str] | Profile | Target,
    precision: str = FP32,
    baseline: bool = True,
    default_path: str | None = None,
    judge: Evidence | None = None,
    calibrate: Evidence | None = None,
    dense_control: Mapping[str, Mapping[str, Any]] | None = None,
    max_drop: float = MAX_DROP,
    undecided: str = "warn",
    random_images: int = RANDOM_IMAGES,
    mixes: WantedMixes = WantedMixes(),  # noqa: B008  # it is frozen
    rtx: Sequence[str] = (),
    allow_slow_structure: bool = False,
    force: bool = False,
    sign: Ed25519PrivateKey | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    stopwatch: Stopwatch | None = None,
) -> BuildResult:
    """Write the bundle of ``checkpoint`` for ``target``.

    Every graph runs in ONNX Runtime against its masked path before the bundle appears under its name: scores within the
    precision's tolerance, accuracies above the gate.

    Args:
        checkpoint: what to export, or its file. Of two networks that share nothing, one of a single path for each of
            ``clean`` and ``robust``, which become the paths.
        output: the bundle's directory.
        target: a device, its profile, its name, or a profile's file; decides alignment, opset, and how int8 graphs are
            quantised.
        precision: ``fp32``, ``fp16`` or ``int8``, of all graphs; input and output are float32 in each.
        baseline: add the unmasked network for comparison.
        default_path: the path a model starts on; the first one (clean) by default.
        judge: labelled images to judge by (`smart_export.evidence`); the checkpoint's samples by default, for int8
            without ``calibrate`` one half of them.
        calibrate: those that int8 graphs are calibrated on; by default the checkpoint's samples, without ``judge`` the
            other half of them. No other precision uses them.
        dense_control: what a dense network, trained likewise, measured (`smart_export.control.control_metrics`), for
            the baseline's accuracies.
        max_drop: what any accuracy of a path may lose against its masked path, as a fraction in [0, 1].
        undecided: what happens where the images are too few to tell whether it lost more: ``warn`` writes the bundle
            with a warning if the drop that was measured is allowed, ``refuse`` does not.
        random_images: how many images of noise to verify on beside those that judge.
        mixes: operating points between the path for clean images and that for attacked ones.
        rtx: add engine plans for GPUs of these compute capabilities, from `smart_export.rtx.parse_capabilities`.
        allow_slow_structure: export zeros in a pattern that the target gains nothing from.
        force: replace a bundle that exists.
        sign: the key to sign it with, from `smart_runtime.bundle.signatures.load_private_key`.
        on_step: called after each graph and each plan, with its name.
        stopwatch: told what each phase took.

    Raises:
        ExportError: if ``output`` cannot be used or has no room, an argument is unknown or out of range, the target
            gains nothing from the checkpoint's structure, two networks do not go into one bundle, or TensorRT-RTX
            refuses a graph.
        MissingExtraError: if ``rtx`` is asked for and its library is not installed.
        VerificationError: if a graph does not agree with its path, or as GateError, if it classifies worse; nothing is
            left behind.
    """
    started = time.perf_counter()
    stopwatch = stopwatch or Stopwatch()
    target = resolve_target(target)
    known = check_precision(precision)
    check_max_drop(max_drop)
    answer = check_undecided(undecided)
    check_output(Path(output), force=force)
    sources = checkpoint if isinstance(checkpoint, Sources) else read_sources(checkpoint)
    names = sources.paths
    default_path = default_path or names[0]
    if default_path not in names:
        raise ExportError(f"no path {default_path!r} to start on; choose out of {', '.join(names)}")
    check_mixes(mixes, sources)
    references = sources.reference_images

    @cache  # the paths of one checkpoint have it in common
    def export_of(part: Checkpoint) -> Export:
        check_structure(part.net.structure, target=target, allow_slow=allow_slow_structure)
        judging, calibrating = divide(part, precision=known, judge=judge, calibrate=calibrate)
        return Export(
            checkpoint=part,
            target=target,
            precision=known,
            judging=judging,
            calibrating=calibrating,
            max_drop=max_drop,
            undecided=answer,
            random_images=random_images,
            reference_images=references,
            stopwatch=stopwatch,
        )

    exports = {name: export_of(part) for name, part in sources.of_path.items()}
    export = replace(exports[names[-1]], checkpoint=sources.whole)
    with stopwatch.phase("count parameters"):
        kept = sources.densities
        # Two networks share no masks that could be compared.
        whole = sources.whole
        masks = None if sources.separate else describe_masks(whole.net, training=whole.training)
    to_onnx = Converter(input_shape=whole.input_shape, opset=target.opset)

    place = Path(os.path.abspath(output))  # noqa: PTH100  # unlike resolve, it leaves links alone; "." gets a name
    with staged(place) as staging:
        graphs = {}
        for name in (*names, *([DENSE] if baseline else [])):
            own = exports[names[0] if name == DENSE else name]
            folded = fold_baseline(own) if name == DENSE else fold_path(own, name)
            graphs[name] = export_graph(own, folded, to_onnx=to_onnx, bundle=staging)
            on_step(name)
        _name_one_graph_once_(graphs, staging)
        (staging / INPUTS).write_bytes(npy_bytes(export.reference_images))
        plans = _plans(graphs, export, folder=staging, capabilities=rtx, on_step=on_step)
        dense, paths = graphs.pop(DENSE, None), graphs
        with stopwatch.phase("temperatures and mixes"):
            temperatures = {name: temperature_of(part, name) for name, part in sources.of_path.items()}
            made = export_mixes(
                mixes, sources=sources, exports=exports, graphs=paths, temperatures=temperatures, bundle=staging
            )
        tripwire = measured(sources, export=export, graphs=paths, bundle=staging, stopwatch=stopwatch)
        with stopwatch.phase("manifest and checksums"):
            manifest = manifest_record(
                export,
                paths=paths,
                baseline=dense,
                dense_control=dense_control,
                plans=plans,
                densities=kept,
                masks=masks,
                mixes=made,
                temperatures=temperatures,
                default_path=default_path,
                shares="nothing" if sources.separate else whole.net.shares,
                tripwire=tripwire.record,
            )
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
        bundle=Path(output),
        target=target,
        precision=known,
        judged=gate_terms(export),
        max_drop=max_drop,
        warnings=(
            *(sentence for graph in paths.values() for sentence in graph.warnings),
            *(sentence for mix in made for sentence in mix.warnings),
            *warnings_of_metrics({name: sources.whole.role(name) for name in names}, sources.whole.metrics),
            *tripwire.warnings,
        ),
        outlook=tripwire.outlook,
        dense_control=dense_control,
        quantisation=quantisation(export),
        paths=paths,
        baseline=dense,
        plans=tuple(plans),
        densities=kept,
        masks=masks,
        mixes=made,
        temperatures=temperatures,
        signer=written.signer,
        seconds=time.perf_counter() - started,
    )


def _plans(
    graphs: Mapping[str, ExportedGraph],
    export: Export,
    *,
    folder: Path,
    capabilities: Sequence[str],
    on_step: Callable[[str], None],
) -> list[Plan]:
    plans: list[Plan] = []
    if not capabilities:
        return plans
    with export.stopwatch.phase("TensorRT-RTX"):
        for name, graph in graphs.items():
            for plan in build_plans(
                name,
                folder / graph.file,
                two_four=any(layer.why_not_two_four is None for layer in graph.cost.layers),
                folder=folder,
                inputs=export.input_spec,
                capabilities=capabilities,
            ):
                plans.append(plan)
                on_step(plan.file)
    return plans


def _name_one_graph_once_(graphs: dict[str, ExportedGraph], bundle: Path) -> None:
    """Let paths that came out as the very same files name the first one's: a copy could be taken for another path."""
    known: dict[tuple[bytes, ...], ExportedGraph] = {}
    for name, graph in graphs.items():
        files = [file for file in (graph.file, graph.weights) if file is not None]
        first = known.setdefault(tuple(sha256((bundle / file).read_bytes()).digest() for file in files), graph)
        if first is not graph and name != DENSE:
            shutil.rmtree((bundle / graph.file).parent)
            graphs[name] = replace(graph, file=first.file, weights=first.weights, scores=first.scores)
