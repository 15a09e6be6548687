"""What the manifest of a bundle says, as docs/formats.md lays it down, and what its target decides about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from smart_common.mask_info import MaskInfo
from smart_common.version import version
from smart_devices import Profile, Target
from smart_export.errors import ExportError
from smart_export.graph import GRAPH, INPUT
from smart_export.mixing import ExportedMix
from smart_export.quantise import CALIBRATION_METHOD, recipe_for
from smart_export.rtx import Plan
from smart_export.stages import Export, ExportedGraph
from smart_runtime.bundle.manifest import FORMAT_VERSION
from smart_runtime.bundle.mixes import FittedTemperature
from smart_runtime.engines import REFERENCE_ENGINE
from smart_runtime.engines.onnxruntime import import_onnxruntime
from smart_runtime.reference import INPUTS, TOLERANCES
from smart_runtime.tripwire.records import TripwireRecord
from smart_train.masking.accounting import Densities
from smart_train.masking.structure import Structure

_MAX_WORKSPACE_BYTES = 4 * 2**30


def manifest_record(
    export: Export,
    *,
    paths: Mapping[str, ExportedGraph],
    baseline: ExportedGraph | None,
    dense_control: Mapping[str, Mapping[str, Any]] | None,
    plans: Sequence[Plan],
    densities: Densities,
    masks: MaskInfo | None,
    mixes: Sequence[ExportedMix],
    temperatures: Mapping[str, FittedTemperature],
    default_path: str,
    shares: str,
    tripwire: TripwireRecord | None,
) -> dict[str, Any]:
    """Return the whole ``manifest.json``: a package description of ONNX Runtime's with our own record inside.

    ``shares`` is what the paths have in common, ``weights`` or ``nothing``; ``tripwire`` is left out where it is None.
    """
    checkpoint = export.checkpoint
    read_as = {"name": INPUT, "dtype": "float32", "layout": "NCHW"}
    ours = {
        "format_version": FORMAT_VERSION,
        "created_by": f"smart-edge {version()}",
        "target": target_record(export.target),
        "precision": export.precision,
        "quantization": quantisation(export),
        "gate": gate_terms(export),
        "default_path": default_path,
        "shares": shares,
        "input": {**read_as, **asdict(export.input_spec), "range": [0.0, 1.0]},
        "output": asdict(export.output_spec),
        "preprocessing": {
            "colour": {1: "L", 3: "RGB"}.get(checkpoint.input_shape[0]),
            "resize": "shorter-side",
            "interpolation": "bilinear",
            "crop": "center",
        },
        "class_names": list(checkpoint.class_names),
        **({} if masks is None else {"masks": masks.record()}),
        "paths": {
            name: {
                "role": checkpoint.role(name).value,
                "density": densities.kept[name],
                "parameter_density": densities.parameters[name],
                **graph_record(graph),
                "layers": layer_records(graph),
                "metrics": checkpoint.metrics[name],
                "gate": graph.judged,
                "calibration": temperatures[name].record(),
            }
            for name, graph in paths.items()
        },
        **({"mixes": {mix.name: mix.record() for mix in mixes}} if mixes else {}),
        "baseline": None
        if baseline is None
        else {
            "name": baseline.name,
            **graph_record(baseline),
            "layers": layer_records(baseline),
            **({} if dense_control is None else {"metrics": dense_control}),
        },
        "reference": {
            "engine": f"{REFERENCE_ENGINE} {import_onnxruntime().__version__}",
            "images": len(export.reference_images),
            "tolerance": TOLERANCES[export.precision],
            "inputs": INPUTS,
            "scores": {
                graph.name: graph.scores for graph in (*paths.values(), *([] if baseline is None else [baseline]))
            },
        },
        **({} if tripwire is None else {"tripwire": tripwire.record()}),
        "plans": [plan.record for plan in plans],
        "training": checkpoint.training,
    }
    variant = {"ep": "CPUExecutionProvider", "executor_info": {"ort": {"model_file": GRAPH}}}
    return {
        "schema_version": "1.0",
        "package_name": f"{checkpoint.architecture}-{checkpoint.training.get('method', 'smart')}",
        "package_version": version(),
        "components": {
            name: {"variants": {"cpu": {**variant, "variant_directory": graph.file.rpartition("/")[0]}}}
            for name, graph in paths.items()
        },
        "additional_metadata": {"smart_edge": ours},
    }


def gate_terms(export: Export) -> dict[str, Any]:
    """Return which images the accuracy gate judged by, what ran the graphs, and what they had to hold."""
    return {
        **export.judging.record(),
        "engine": f"{REFERENCE_ENGINE} {import_onnxruntime().__version__}",
        "max_drop": export.max_drop,
        "undecided": export.undecided,
    }


def quantisation(export: Export) -> dict[str, Any] | None:
    """Return how the graphs became int8; None for other precisions."""
    if export.calibrating is None:
        return None
    return {
        "recipe": recipe_for(export.target),
        "library": f"onnxruntime {import_onnxruntime().__version__}",
        "calibration": {"method": CALIBRATION_METHOD, **export.calibrating.record()},
    }


def graph_record(graph: ExportedGraph) -> dict[str, Any]:
    """Return what the manifest and ``--json`` say of a path or of the baseline, without its layers."""
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
    }


def layer_records(graph: ExportedGraph) -> list[dict[str, Any]]:
    """Return what the manifest and a report say of each layer."""
    return [{**asdict(layer), "why_not_dla": graph.dla.why_not[layer.name]} for layer in graph.cost.layers]


def check_structure(structure: Structure, *, target: Target, allow_slow: bool) -> None:
    """Raise ExportError for zeros in a pattern that ``target`` gains nothing from, unless ``allow_slow`` is set.

    They cost accuracy, and nobody gets speed for it. Zeros anywhere gain no speed on any device, which is no reason to
    refuse one of them.
    """
    slow = structure.pattern.why_refused(target)
    if slow is not None and not allow_slow:
        raise ExportError(
            f"{structure.name} does not pay on {target.name}: {slow}; train with --structure "
            f"channel, or export it as it is with --allow-slow-structure"
        )


def workspace_bytes(profile: Profile) -> int | None:
    """Return how much memory an engine's builder should be allowed for its own work, None where nobody knows.

    TensorRT takes all of the device's memory unless it is told otherwise (``setMemoryPoolLimit`` in NvInfer.h). On a
    board where the host's programs live in the same memory that ends with the builder killed (TensorRT issue 1404,
    ultralytics issue 17338 on a board of 4 GB). The rule is ours: an eighth of shared memory, since the builder also
    holds the network's weights several times over beside everything else that runs; a quarter of a card's own; 4 GiB at
    most, which no kernel of a classifier needs.
    """
    size_gb = profile.memory.size.value
    if profile.kind == "cpu" or size_gb is None:
        return None
    return min(_MAX_WORKSPACE_BYTES, int(size_gb * 2**30) // (8 if profile.memory.shared_with_host else 4))


def target_record(target: Target) -> dict[str, Any]:
    """Return what the manifest says of the target; ``engines`` are all that can run a graph there, best first."""
    profile = target.profile
    return {
        "name": target.name,
        "profile": profile.name,
        "kind": profile.kind,
        "jetpack": target.jetpack,
        "engines": [{"name": name} for name in profile.engines],
        "workspace_bytes": workspace_bytes(profile),
    }
