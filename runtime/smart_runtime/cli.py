"""``smart-run``: classify pictures with a bundle, and say what a bundle holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smart_common.console.cli import (
    Group,
    console,
    json_option,
    note,
    print_json,
    print_wide,
    progress,
    say,
    say_error,
    table,
    version_option,
    warn,
    warnings_as_notes,
)
from smart_common.errors import shortened
from smart_common.outputs import check_outputs
from smart_common.robustness import warnings_of_metrics
from smart_common.units import si
from smart_devices.engine_rows import AUTO, engine_names
from smart_runtime.audit.cli import audit
from smart_runtime.calibrating.cli import calibrate
from smart_runtime.installing.cli import install
from smart_runtime.selfcheck.cli import selftest

if TYPE_CHECKING:
    from smart_runtime.bundle.bundle import Bundle
    from smart_runtime.bundle.manifest import GraphInfo
    from smart_runtime.classify import Prediction

_F = TypeVar("_F", bound=Callable[..., Any])


def trust_option(function: _F) -> _F:
    """Add ``--trust``, for every command that opens bundles."""
    return click.option(
        "--trust",
        metavar="KEY.pub",
        default=None,
        type=click.Path(path_type=Path),
        help="Open a bundle only if it is signed with this key.",
    )(function)


def engine_option(default: str) -> Callable[[_F], _F]:
    """Return a decorator that adds ``--engine``, for every command that runs graphs; None stands for ``default``."""
    return click.option(
        "--engine",
        metavar="NAME",
        default=None,
        help=f"Engine that runs the graphs: {', '.join((AUTO, *engine_names()))}.  [default: {default}]",
    )


@click.group(cls=Group, epilog="Example: smart-run infer bundle/ picture.png --path robust --top 3")
@version_option("smart-run")
@click.pass_context
def main(context: click.Context) -> None:
    """Run a bundle on this device."""
    context.with_resource(warnings_as_notes("smart_runtime"))


main.add_command(calibrate)
main.add_command(install)
main.add_command(selftest)
main.add_command(audit)


@main.command(epilog="Example: smart-run infer bundle/ cat.jpg holiday/ 'frames/*.png' --path robust --top 3")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("pictures", metavar="PICTURE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--path", default=None, help="Path that answers.  [default: the bundle's own]")
@click.option("--top", default=1, show_default=True, type=click.IntRange(min=1), help="Classes to show a picture.")
@click.option("--threads", default=None, type=click.IntRange(min=1), help="Threads.  [default: one a physical core]")
@trust_option
@engine_option(AUTO)
@json_option
def infer(
    *,
    bundle: Path,
    pictures: tuple[Path, ...],
    path: str | None,
    top: int,
    threads: int | None,
    trust: Path | None,
    engine: str | None,
    as_json: bool,
) -> None:
    """Classify pictures: files, all that lie in a folder, or a pattern such as 'frames/*.png'.

    Each goes through the preprocessing that the bundle asks for and is one call of batch 1; the latency is that of the
    call, without reading the file. A picture that cannot be read, and a folder or pattern without any, is reported
    and makes the exit status 1, after the answers for the others.
    """
    from smart_runtime.bundle.bundle import Bundle  # noqa: PLC0415  # its NumPy takes long, and `--help` needs none
    from smart_runtime.classify import best_classes  # noqa: PLC0415  # its NumPy takes long, and `--help` needs none
    from smart_runtime.errors import InputError  # noqa: PLC0415  # as above
    from smart_runtime.frames import preprocess  # noqa: PLC0415  # as above
    from smart_runtime.memory import ON_DEMAND, RESIDENT  # noqa: PLC0415  # as above
    from smart_runtime.model import SmartModel  # noqa: PLC0415  # as above
    from smart_runtime.pictures import list_pictures  # noqa: PLC0415  # as above

    files, nothing = list_pictures(pictures)
    check_outputs(inputs=[bundle, trust, *files])
    results, failures = [], [{"picture": str(name), "error": error} for name, error in nothing.items()]
    # One path answers all pictures, so only that one is loaded, or all for a mix; every byte is checked all the same.
    memory = RESIDENT if path is not None and path in Bundle.open(bundle, trust=trust).manifest.mixes else ON_DEMAND
    with (
        SmartModel.load(
            bundle, path=path, engine=AUTO if engine is None else engine, threads=threads, memory=memory, trust=trust
        ) as model,
        progress("classifying pictures", total=len(files)) as advance,
    ):
        for file in files:
            try:
                result = model.run(preprocess(file, model))
            except InputError as error:
                failures.append({"picture": str(file), "error": str(error)})
            else:
                found = best_classes(result.scores[0], model.class_names, top=top, temperature=result.temperature)
                results.append((file, found, result.latency_ms))
            advance()
        used, signer, notes = model.path, model.bundle.signer, model.notes
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "signed_by": signer,
                "notes": list(notes),
                "path": used,
                "results": [_infer_json(*result) for result in results],
                "failed": failures,
            }
        )
    elif results:
        rows = []
        for file, found, latency_ms in results:
            # A name may hold anything; shown as it is, it could redraw the terminal, or not be text at all.
            picture, latency = shortened(file.name), f"{latency_ms:.2f}"
            for one in found:
                rows.append([picture, one.name, f"{one.probability:.1%}", f"{one.score:.3f}", latency])
                picture = latency = ""  # in the first row only
        console().print(table(f"path {used}", ["picture", "class", "probability", "score", "latency ms"], rows))
    for failure in failures:
        say_error(failure["error"])
    if failures:
        raise SystemExit(1)


def _infer_json(file: Path, found: Sequence[Prediction], latency_ms: float) -> dict[str, Any]:
    predictions = [
        {"class": one.name, "index": one.index, "score": one.score, "probability": one.probability} for one in found
    ]
    return {"picture": str(file), "predictions": predictions, "latency_ms": latency_ms}


@main.command(epilog="Example: smart-run info bundle/ --trust release.pub")
@click.argument("bundle", type=click.Path(path_type=Path))
@trust_option
@engine_option(AUTO)
@json_option
def info(*, bundle: Path, trust: Path | None, engine: str | None, as_json: bool) -> None:
    """Say what a bundle holds, and check every byte of it; needs no engine."""
    from smart_runtime.bundle.accuracies import accuracies  # noqa: PLC0415  # `--help` does without
    from smart_runtime.bundle.bundle import Bundle  # noqa: PLC0415  # as above
    from smart_runtime.bundle.told import dial_lines, dial_record  # noqa: PLC0415  # as above
    from smart_runtime.engines import resolve_engine  # noqa: PLC0415  # as above, and without its NumPy
    from smart_runtime.notes import notes_here, notes_on  # noqa: PLC0415  # as above
    from smart_runtime.tripwire.outlook import outlook_of  # noqa: PLC0415  # as above
    from smart_runtime.tripwire.records import read_tripwire  # noqa: PLC0415  # as above

    check_outputs(inputs=[bundle, trust])
    opened = Bundle.open(bundle, trust=trust)
    opened.verify()
    manifest = opened.manifest
    spec = manifest.input
    notes = notes_here(opened) if engine is None else notes_on(manifest, engine_name=resolve_engine(engine))
    warnings = warnings_of_metrics(
        {name: graph.role for name, graph in manifest.paths.items() if graph.role is not None},
        {name: graph.metrics for name, graph in manifest.paths.items()},
    )
    for sentence in notes:
        note(sentence)
    warn(warnings)
    measured = accuracies(manifest)
    tripwire = read_tripwire(manifest)
    outlook = None if tripwire is None else outlook_of(tripwire)
    warn(() if outlook is None else outlook.warnings)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "digest": opened.digest,
                "signed": opened.signed,
                "signed_by": opened.signer,
                "name": manifest.package_name,
                "format_version": manifest.format_version,
                "created_by": manifest.created_by,
                "target": manifest.target.name,
                "precision": manifest.precision,
                "quantization": None if manifest.quantization is None else dict(manifest.quantization),
                "gate": None if manifest.gate is None else dict(manifest.gate),
                "notes": list(notes),
                "warnings": [*warnings, *(() if outlook is None else outlook.warnings)],
                "default_path": manifest.default_path,
                "masks": None if manifest.masks is None else manifest.masks.record(),
                "shares": manifest.shares,
                "tripwire": None if outlook is None else outlook.record(),
                "input": {"channels": spec.channels, "height": spec.height, "width": spec.width},
                "class_names": list(manifest.class_names),
                "accuracies": [one.record() for one in measured],
                "graphs": [_graph_json(graph) for graph in manifest.graphs],
                **dial_record(manifest),
            }
        )
        return
    for line in (
        f"{manifest.package_name}, {manifest.precision}, for {manifest.target.name}, made by {manifest.created_by}",
        f"images {' x '.join(str(side) for side in spec.shape)}, classes {manifest.output.classes}, "
        f"default path {manifest.default_path}"
        + ("; the paths are separate networks, which share no weights" if manifest.shares == "nothing" else ""),
        f"digest {opened.digest}: every byte is as exported",
        _signature(opened, trust),
    ):
        say(line)
    rows = [
        [
            graph.name,
            "" if graph.density is None else f"{graph.density:g}",
            "" if graph.parameter_density is None else f"{graph.parameter_density:.3f}",
            si(graph.macs),
            si(graph.parameters),
            si(graph.bytes, "B"),
        ]
        for graph in manifest.graphs
    ]
    console().print(table("", ["graph", "density", "of all parameters", "MACs", "parameters", "size"], rows))
    for line in (*(() if manifest.masks is None else manifest.masks.lines()), *dial_lines(manifest)):
        say(line)
    columns = ["path", "accuracy of", "measured by", "images", "attack", "clean accuracy", "robust accuracy"]
    rows = [
        [one.path, one.what, one.by, one.where, one.under, _figure(one.clean_accuracy), _figure(one.robust_accuracy)]
        for one in measured
    ]
    if manifest.baseline is not None and all(one.path != manifest.baseline.name for one in measured):
        rows.append([manifest.baseline.name, "not trained", "", "", "", "", ""])
    print_wide(table("", columns, rows, text_columns=5))
    for line in () if outlook is None else outlook.lines:
        say(line)


def _signature(bundle: Bundle, trust: Path | None) -> str:
    from smart_runtime.bundle.signatures import short_fingerprint  # noqa: PLC0415  # loaded with Bundle

    if bundle.signer is not None:
        return f"signed with the key of {trust} ({short_fingerprint(bundle.signer)})"
    return "signed, but not checked: --trust KEY.pub checks it" if bundle.signed else "not signed"


def _graph_json(graph: GraphInfo) -> dict[str, Any]:
    return {
        "name": graph.name,
        "file": graph.file,
        "density": graph.density,
        "parameter_density": graph.parameter_density,
        "macs": graph.macs,
        "parameters": graph.parameters,
        "bytes": graph.bytes,
        "metrics": None if graph.metrics is None else dict(graph.metrics),
        "gate": None if graph.gate is None else dict(graph.gate),
    }


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
