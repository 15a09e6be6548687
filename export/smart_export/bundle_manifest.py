"""What the manifest of a bundle says, as docs/formats.md lays it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from smart_common.version import version
from smart_export.graph import GRAPH, INPUT, OUTPUT
from smart_export.quantise import CALIBRATION_METHOD, recipe_for
from smart_export.rtx import Plan
from smart_export.stages import Export, ExportedGraph
from smart_export.target_rules import target_record
from smart_runtime.bundle.manifest import FORMAT_VERSION
from smart_runtime.engines.onnxruntime import import_onnxruntime
from smart_train.masking.accounting import Densities


def manifest_record(
    export: Export,
    *,
    paths: Mapping[str, ExportedGraph],
    baseline: ExportedGraph | None,
    plans: Sequence[Plan],
    densities: Densities,
    default_path: str,
) -> dict[str, Any]:
    """Return the whole ``manifest.json``: a package description of ONNX Runtime's with our own record inside."""
    checkpoint = export.checkpoint
    channels, height, width = checkpoint.input_shape
    ours = {
        "format_version": FORMAT_VERSION,
        "created_by": f"smart-edge {version()}",
        "target": target_record(export.target),
        "precision": export.precision,
        "quantization": quantisation(export),
        "gate": {**export.judging.record(), "max_drop": export.max_drop},
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
        "paths": {
            name: {
                "role": checkpoint.role(name).value,
                "density": densities.kept[name],
                "parameter_density": densities.parameters[name],
                **graph_record(graph),
                "layers": layer_records(graph),
                "metrics": checkpoint.metrics[name],
                "gate": None if graph.gate is None else graph.gate.record(),
            }
            for name, graph in paths.items()
        },
        "baseline": None
        if baseline is None
        else {"name": baseline.name, **graph_record(baseline), "layers": layer_records(baseline)},
        "plans": [plan.record for plan in plans],
        "training": checkpoint.training,
    }
    variant = {"ep": "CPUExecutionProvider", "executor_info": {"ort": {"model_file": GRAPH}}}
    return {
        "schema_version": "1.0",
        "package_name": f"{checkpoint.architecture}-{checkpoint.training.get('method', 'smart')}",
        "package_version": version(),
        "components": {name: {"variants": {"cpu": {**variant, "variant_directory": name}}} for name in paths},
        "additional_metadata": {"smart_edge": ours},
    }


def quantisation(export: Export) -> dict[str, Any] | None:
    """Return how the graphs became int8; None for other precisions."""
    if export.calibrating is None:
        return None
    return {
        "recipe": recipe_for(export.target).name,
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
