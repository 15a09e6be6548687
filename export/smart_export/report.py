"""What a build did to each layer of each path, for people and for ``--report``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from smart_common.files import replacing
from smart_common.mask_info import MaskInfo
from smart_common.outputs import Output, check_outputs
from smart_common.units import si
from smart_devices import Target
from smart_devices.profiles import profile_file
from smart_devices.roofline import Estimate, NoEstimate, estimate, peaks_of
from smart_export.build import BuildResult
from smart_export.bundle_manifest import graph_record, layer_records
from smart_export.dla import DlaReport, has_dla
from smart_export.errors import ExportError
from smart_export.layers import LayerCost, NetworkCost
from smart_export.precision import INT8, Precision
from smart_export.rtx import Plan
from smart_export.sparsity import FileSparsity, LayerSparsity
from smart_export.stages import ExportedGraph
from smart_runtime.bundle.manifest import DENSE

Expected: TypeAlias = Estimate | NoEstimate

_MEASURE = NoEstimate(reason="a processor's peaks say little about it; smart-bench measures the latency on it")
_NAMES = 4  # layers that a line names; the table has them all


def summary(result: BuildResult, *, layers: bool = False) -> dict[str, Any]:
    """Return what was built as plain values, for ``--json`` and tables; ``layers`` adds what ``--report`` has."""

    def row(graph: ExportedGraph) -> dict[str, Any]:
        latency = expected_latency(graph.cost, target=result.target, precision=result.precision)
        expected = latency.as_json()
        found = {**graph_record(graph), "verified_on": graph.agreement.images, "expected": expected}
        if layers:
            found |= {"attention": list(attention(graph.name, graph)), "layers": layer_records(graph)}
            if isinstance(latency, Estimate):
                expected["layers"] = [asdict(layer) for layer in latency.layers]
        return found

    return {
        "bundle": str(result.bundle),
        "target": result.target.name,
        "profile": result.target.profile.name,
        "precision": result.precision,
        "quantization": result.quantisation,
        "gate": {name: graph.judged for name, graph in result.paths.items() if graph.judged is not None},
        "judged_by": result.judged,
        "warnings": list(result.warnings),
        "dense_control": result.dense_control,
        "signed_by": result.signer,
        "seconds": result.seconds,
        "union_density": result.densities.union,
        "masks": None if result.masks is None else result.masks.record(),
        "tripwire": None if result.outlook is None else result.outlook.record(),
        "paths": {
            name: {
                "density": result.densities.kept[name],
                "parameter_density": result.densities.parameters[name],
                **row(graph),
            }
            for name, graph in result.paths.items()
        },
        "baseline": None if result.baseline is None else {"name": result.baseline.name, **row(result.baseline)},
        "mixes": {mix.name: mix.record() for mix in result.mixes},
        "temperatures": {name: one.record() for name, one in result.temperatures.items()},
        "plans": [{**plan.record, "seconds": plan.seconds} for plan in result.plans],
    }


def graph_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and a row for each graph of a :func:`summary`, the baseline last."""
    columns = ["graph", "density", "of all parameters", "parameters", "MACs", "MAC ratio", "bytes", "max difference"]
    graphs = {**found["paths"], **({DENSE: found["baseline"]} if found["baseline"] else {})}
    return columns, [
        [
            name,
            f"{row['density']:.3f}" if "density" in row else "1",
            f"{row['parameter_density']:.3f}" if "parameter_density" in row else "1",
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            f"{row['dense_macs'] / row['macs']:.2f}x",
            f"{row['bytes']:,}",
            f"{row['max_rel_diff']:.1e}",
        ]
        for name, row in graphs.items()
    ]


def expectations(result: BuildResult) -> dict[str, Expected]:
    """Return how long each graph should take on the target, by name: the baseline first, if there is one."""
    graphs = [*([] if result.baseline is None else [result.baseline]), *result.paths.values()]
    return {
        graph.name: expected_latency(graph.cost, target=result.target, precision=result.precision) for graph in graphs
    }


def expected_latency(cost: NetworkCost, *, target: Target, precision: Precision) -> Expected:
    """Return the least time that a call with one image takes on ``target``; nothing is said of a processor."""
    roof = _MEASURE if target.profile.kind == "cpu" else peaks_of(target.profile, precision=precision)
    return estimate(map(asdict, cost.layers), roof=roof)


def expected_lines(estimates: Mapping[str, Expected]) -> Iterator[str]:
    """Yield what is expected of each graph, then what that rests on; or why nothing is."""
    for name, found in estimates.items():
        if isinstance(found, Estimate):
            yield f"{name}: {found}, {found.share('compute'):.0%} of it in layers bound by arithmetic"
    yield from dict.fromkeys(
        f"expected by {found.assumes}" if isinstance(found, Estimate) else f"expected latency {found}"
        for found in estimates.values()
    )


def verdict(result: BuildResult) -> str:
    """Return what the export proved, in a few words for a title."""
    if any(graph.warnings for graph in result.paths.values()):
        return "the accuracy gate could not decide"
    held = "path passed the accuracy gate" if result.precision == INT8 else "graph agrees with its masked path"
    return f"each {held}"


def gate_lines(result: BuildResult) -> Iterator[str]:
    """Yield a line for each path on what its accuracies lost, then what was compared, by whom and on what."""
    for name, graph in result.paths.items():
        if graph.gate is not None and graph.judged is not None:
            drops = (
                f"{what} {found.before:.3f} -> {found.after:.3f} "
                f"(drop {100 * found.low:.1f} to {100 * found.high:.1f} points: {judged['verdict']})"
                for (what, found), judged in zip(graph.gate.drops.items(), graph.judged.values(), strict=True)
            )
            yield f"{name}: {', '.join(drops)}"
    judged = result.judged
    yield (
        f"from the masked path (fp32, torch) to the {result.precision} graph ({judged['engine']}), judged by "
        f"{judged['images']} images of {judged['source']}, {judged['attack']} at eps {judged['eps']:.4g} made on the "
        f"masked path; 95% intervals; at most {100 * result.max_drop:g} points may be lost"
    )


def checkpoint_lines(found: Mapping[str, Any], masks: MaskInfo) -> list[str]:
    """Return what `smart_train.checkpoint.format.describe` says of a checkpoint, without its paths' figures."""
    structure, training = found["structure"], found["training"]
    arguments = ", ".join(f"{k} {v}" for k, v in found["arguments"].items())
    shape, classes = " x ".join(map(str, found["input_shape"])), len(found["class_names"])
    metrics = next(iter(found["paths"].values()))
    lines = [
        f"{found['architecture']} ({arguments}), images {shape}, {classes} classes",
        f"structure {structure['name']}, density {structure['density']:g}, align {structure['align']}, "
        f"scope {structure['scope']}, budget {structure['budget']}",
        *masks.lines(),
    ]
    if {"method", "epochs", "best_epoch", "seed"} <= training.keys():
        method = f"{training['method']} (a {training['caveat']})" if "caveat" in training else training["method"]
        lines.append(
            f"trained with {method} for {training['epochs']} epochs, best {training['best_epoch']}, "
            f"seed {training['seed']}"
        )
    if {"attack", "eps", "split", "examples"} <= metrics.keys():
        lines.append(
            f"figures of the masked fp32 paths, by smart-train: {metrics['examples']} images of the {metrics['split']} "
            f"split, {metrics['attack']} at eps {metrics['eps']:.4g}"
        )
    return lines


def check_places(*, bundle: Path, report: Path | None, target: str, inputs: Iterable[Path | None]) -> None:
    """Refuse a bundle or report in the place of ``inputs``, or a report that cannot be written, before the work.

    The file of ``target`` is an input too, if it has one.

    Raises:
        ExportError: The report has no folder to go into, is one, or lies in the bundle that it is about.
        OutputError: As `smart_common.outputs.check_outputs`.
    """
    outputs = [Output("-o", bundle)]
    if report is not None:
        if not report.parent.is_dir():
            raise ExportError(f"no folder for {report}; create {report.parent} first")
        if report.is_dir():
            raise ExportError(f"{report} is a folder; add a name, as in report.json")
        if bundle.resolve() in report.resolve().parents:
            raise ExportError(
                f"the report {report} cannot be inside of the bundle, which has its own files only; name another place"
            )
        outputs.append(Output("--report", report, is_report))
    check_outputs(outputs, inputs=[*inputs, profile_file(target)])


def is_report(file: Path) -> bool:
    """Whether :func:`write_report` wrote ``file``; raises OSError if the system cannot read it."""
    with file.open("rb") as opened:
        head = opened.read(4096)
    return head.startswith(b'{\n "bundle": ') and b'\n "target": ' in head and b'\n "precision": ' in head


def write_report(file: Path, result: BuildResult) -> None:
    """Write the :func:`summary` with its layers into ``file``, whole or not at all; raises OSError."""
    with replacing(file) as opened:
        opened.write((json.dumps(summary(result, layers=True), indent=1, allow_nan=False) + "\n").encode())


def attention(name: str, graph: ExportedGraph) -> Iterator[str]:
    """Yield a sentence for each kind of layer that costs more than its path needs."""
    layers = graph.cost.layers
    padded = [layer for layer in layers if layer.padded_out_channels]
    if padded:
        added = sum(layer.padded_out_channels for layer in padded)
        what = "1 channel of zeros fills" if added == 1 else f"{added} channels of zeros fill"
        yield f"{name}: {what} " + _counted(padded, "up to the target's alignment")
    masked = [layer for layer in layers if layer.structure not in {"dense", "channel"}]
    loose = [layer for layer in masked if not layer.two_four]
    if loose:
        yield f"{name}: " + _counted(loose, "with zeros that no engine skips, as they are not 2:4")
    idle = [layer for layer in masked if layer.two_four and layer.why_no_gain is not None]
    for why in dict.fromkeys(layer.why_no_gain for layer in idle):
        group = [layer for layer in idle if layer.why_no_gain == why]
        yield f"{name}: " + _counted(group, f"in 2:4 without gain ({why})")


def _counted(layers: Sequence[LayerCost], what: str) -> str:
    plural = "s" if len(layers) > 1 else ""
    return f"{len(layers)} layer{plural} {what}: {_named([layer.name for layer in layers])}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def build_columns(target: Target) -> list[str]:
    """Return the names of the columns of :func:`build_rows`."""
    dla = ["DLA"] if has_dla(target) else []
    return ["layer", "structure", "in", "out", "zeros", "2:4", *dla, "MACs before", "after", "expected", "bound by"]


def build_rows(graph: ExportedGraph, expected: Expected) -> list[list[str]]:
    """Return a row for each layer: channels kept of all, ``+`` those for alignment."""
    layers = expected.layers if isinstance(expected, Estimate) else [None] * len(graph.cost.layers)
    return [
        [
            layer.name,
            layer.structure,
            f"{layer.in_channels}/{layer.dense_in_channels}",
            f"{layer.kept_out_channels}{f'+{layer.padded_out_channels}' if layer.padded_out_channels else ''}"
            f"/{layer.dense_out_channels}",
            _percent(layer.zeros, layer.weights),
            "yes" if layer.why_not_two_four is None else "no",
            *(["yes" if graph.dla.why_not[layer.name] is None else "no"] if graph.dla.cores else []),
            si(layer.dense_macs),
            si(layer.macs),
            *(("", "") if cost is None else (f"{1e6 * cost.seconds:.3g} us", cost.bound)),
        ]
        for layer, cost in zip(graph.cost.layers, layers, strict=True)
    ]


def build_tables(
    paths: Mapping[str, ExportedGraph], estimates: Mapping[str, Expected]
) -> Iterator[tuple[str, list[list[str]], list[str]]]:
    """Yield title, rows and reasons for each path; one for several paths of which all of that is the same."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    made = {name: (build_rows(graph, estimates[name]), list(build_reasons(graph))) for name, graph in paths.items()}
    for name, (rows, reasons) in made.items():
        alike.setdefault((*map(tuple, rows), *reasons), []).append(name)
    for names in alike.values():
        yield ", ".join(names), *made[names[0]]


def build_reasons(graph: ExportedGraph) -> Iterator[str]:
    """Yield a line for each reason why masks leave layers whole, and why layers are not 2:4; one on DLA if there is."""
    yield from _reasons("masks leave whole", [(layer.why_dense, layer.name) for layer in graph.cost.layers])
    yield from _reasons("not 2:4", [(layer.why_not_two_four, layer.name) for layer in graph.cost.layers])
    yield from dla_lines(graph.dla)


def dla_lines(report: DlaReport) -> Iterator[str]:
    """Yield one line on the graph for people, none for a target without accelerators."""
    if report.cores == 0:
        return
    found = [*report.why_not.items(), *report.others.items()]
    reasons = dict.fromkeys(why for _, why in found if why is not None)
    parts = [f"{_named([n for n, why in found if why == reason])} ({reason})" for reason in reasons]
    rest = f"; the GPU keeps {', '.join(parts)}" if parts else ""
    yield (
        f"DLA: {report.eligible} of {len(report.why_not)} layers eligible at fp16 or int8 and one fixed batch "
        f"size{rest}"
    )


def plan_lines(plans: Sequence[Plan]) -> Iterator[str]:
    """Yield a line for each engine plan."""
    for plan in plans:
        yield (
            f"{plan.file}: {si(plan.bytes, 'B')}, TensorRT-RTX {plan.tensorrt_rtx}, compute capability "
            f"{', '.join(plan.compute_capabilities)}, batch {plan.batch.min} to {plan.batch.max}, built in "
            f"{plan.seconds:.1f} s"
        )


def _percent(zeros: int, weights: int) -> str:
    return f"{zeros / weights:.1%}" if zeros else "0"


def _reasons(what: str, found: Sequence[tuple[str | None, str]]) -> Iterator[str]:
    """Yield a line for each reason, with the names it is true of."""
    for reason in dict.fromkeys(reason for reason, _ in found if reason is not None):
        yield f"{what}, {reason}: {_named([name for other, name in found if other == reason])}"


def file_table(found: FileSparsity, target: Target | None) -> tuple[list[str], list[list[str]]]:
    """Return columns and a row for each layer; with a target, one column says whether it would gain."""
    gain = [] if target is None else ["gain"]
    columns = ["layer", "operator", "weight", "dtype", "zeros", found.pattern.name, *gain, "MACs", "parameters"]
    return columns, [
        [
            layer.name,
            layer.op if layer.groups == 1 else f"{layer.op}/{layer.groups}",
            "unknown" if layer.shape is None else "x".join(map(str, layer.shape)),
            layer.dtype,
            "unknown" if layer.zeros is None else _percent(layer.zeros.zeros, layer.zeros.weights),
            "yes" if layer.why_not is None else "no",
            *([] if target is None else ["yes" if layer.why_no_gain is None else "no"]),
            "unknown" if layer.macs is None else si(layer.macs),
            si(layer.parameters),
        ]
        for layer in found.layers
    ]


def file_reasons(found: FileSparsity, target: Target | None) -> Iterator[str]:
    """Yield a line for each reason why layers are not sparse or would not gain, then the notes."""
    yield from _reasons(f"not {found.pattern.name}", [(layer.why_not, layer.name) for layer in found.layers])
    if target is not None:
        gains = [(layer.why_no_gain, layer.name) for layer in found.layers]
        yield from _reasons(f"no gain on {target.name}", gains)
    yield from found.notes


def file_report(found: FileSparsity, target: Target | None) -> dict[str, Any]:
    """Return what was found of an ONNX file as plain values; what depends on a target is there with one only."""

    def row(layer: LayerSparsity) -> dict[str, Any]:
        record = {**asdict(layer), "why_not": layer.why_not}
        zeros = record.pop("zeros")
        if layer.zeros is not None:
            del zeros["why_not"]
            record |= {**zeros, "zero_fraction": layer.zeros.zero_fraction}
        if target is None:
            del record["why_no_gain"]
        return record

    return {
        "pattern": found.pattern.name,
        "target": None if target is None else target.name,
        "macs": found.macs,
        "parameters": found.parameters,
        "other_parameters": found.other_parameters,
        "bytes": found.bytes,
        "notes": list(found.notes),
        "layers": [row(layer) for layer in found.layers],
    }
