"""``smart-export``: fold a checkpoint into a bundle, check a bundle, describe either."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smart_common.console import cli as house
from smart_common.outputs import check_outputs
from smart_common.robustness import warnings_of_metrics
from smart_common.units import si
from smart_devices import PRECISIONS, resolve_target
from smart_devices.engine_rows import REFERENCE_ENGINE
from smart_export.dial.cli import mix_options
from smart_export.errors import ExportError
from smart_export.given.cli import GivenCheckpoints, checkpoint_options, images_for
from smart_export.precision import FP32, INT8, MAX_DROP
from smart_export.printing.cli import print_lines, print_phase, print_result, print_total
from smart_export.timings import Stopwatch, peak_bytes, seconds_since_start
from smart_runtime.bundle.manifest import DENSE
from smart_runtime.cli import engine_option, trust_option
from smart_train.architectures.cli import OwnNetwork, own_network_options
from smart_train.choices import DATA_SPECS
from smart_train.data.cli import DataPlaces, data_options, data_place

if TYPE_CHECKING:
    from smart_export.mixing import WantedMixes

_FILE = click.Path(path_type=Path)

_BUILD_GROUPS = {
    "Device and graphs": (
        "target", "jetpack", "precision", "baseline", "dense_control", "default_path", "rtx", "allow_slow_structure",
    ),
    "Accuracy": ("max_drop", "undecided", "mix", "mix_clean"),
    "Model and data": (
        "clean", "robust", "data", "data_images", "calibration", "data_dir", "cache_dir", "no_cache", "max_broken",
        "model", "model_arg",
    ),
    "Output": ("output", "force", "sign", "report", "as_json"),
}  # fmt: skip


@click.group(cls=house.Group, default="build", epilog="Example: smart-export ckpt.pt --target jetson-orin")
@house.version_option("smart-export")
@click.pass_context
def main(context: click.Context) -> None:
    """Turn a checkpoint into a bundle: one small ONNX graph a path, verified against the network it came from.

    `smart-export CKPT ...` means `smart-export build CKPT ...`.
    """
    context.with_resource(house.warnings_as_notes("smart_export", "smart_train"))


@main.command(
    option_groups=_BUILD_GROUPS,
    epilog="""Example: smart-export ckpt.pt --target jetson-orin -o bundle

Two networks: smart-export --clean standard.pt --robust trades.pt --target jetson-orin -o bundle""",
)
@checkpoint_options
@mix_options
@click.option("--target", required=True, metavar="NAME", help="The device (smart-devices list), or its FILE.json.")
@click.option(
    "--jetpack",
    metavar="RELEASE",
    help="The JetPack on a Jetson, such as 6.0: graphs keep to the operators that its TensorRT reads.",
)
@click.option("-o", "--output", type=_FILE, metavar="DIR", help="The bundle.  [default: CHECKPOINT-TARGET beside it]")
@click.option(
    "--baseline",
    default=DENSE,
    show_default=True,
    type=house.Choice([DENSE, "none"]),
    help="Add the unmasked network for smart-bench.",
)
@click.option(
    "--dense-control",
    type=_FILE,
    metavar="CKPT",
    help="Give the baseline the accuracies of this dense network (smart-train --dense-control).  [default: "
    "CHECKPOINT.dense.pt beside it, where there is one]",
)
@click.option(
    "--precision",
    default=FP32,
    show_default=True,
    type=house.Choice(PRECISIONS),
    help="Of weights and arithmetic; images and scores are fp32 in each.",
)
@click.option(
    "--max-drop",
    default=100 * MAX_DROP,
    show_default=True,
    type=float,
    metavar="POINTS",
    help="Fail if an accuracy of a path, clean or under attack, drops by more points (hundredths) than this.",
)
@click.option(
    "--undecided",
    default="warn",
    show_default=True,
    type=house.Choice(["warn", "refuse"]),
    help="If the images are too few to say whether a drop is above --max-drop, but the measured one is not.",
)
@click.option(
    "--data",
    metavar="SPEC",
    help=f"Judge by test images of {DATA_SPECS}, attacked with PGD on each path, instead of the checkpoint's samples.",
)
@click.option(
    "--data-images",
    default=1024,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=1),
    help="Judge by at most N of them.",
)
@click.option(
    "--calibration",
    metavar="SPEC",
    help="For int8: find ranges on training images of this data, clean or attacked as each path is meant for, instead "
    "of on one half of the samples (on all with --data).",
)
@data_options
@own_network_options
@click.option("--default-path", metavar="PATH", help="The path a model starts on.  [default: the first]")
@click.option(
    "--rtx", metavar="LIST", help="Add engine plans by TensorRT-RTX for these compute capabilities: 8.6,8.9,12.0."
)
@click.option(
    "--allow-slow-structure", is_flag=True, help="Export N:M zeros for a device that does not run them faster."
)
@click.option("--force", is_flag=True, help="Replace a bundle that exists.")
@click.option("--sign", type=_FILE, metavar="KEY", help="Sign the bundle with this private key (smart-export keygen).")
@click.option("--report", type=_FILE, metavar="FILE", help="Write what became of each layer into this JSON file too.")
@house.json_option
def build(
    *,
    given: GivenCheckpoints,
    mixes: Callable[[], WantedMixes],
    target: str,
    jetpack: str | None,
    output: Path | None,
    baseline: str,
    dense_control: Path | None,
    precision: str,
    max_drop: float,
    undecided: str,
    data: str | None,
    data_images: int,
    calibration: str | None,
    places: DataPlaces,
    own: OwnNetwork,
    default_path: str | None,
    rtx: str | None,
    allow_slow_structure: bool,
    force: bool,
    sign: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Fold every path of CHECKPOINT, convert it to ONNX, verify it, and write the bundle.

    The accuracies of each graph, clean and on adversarial images, are compared with those of its masked path on the
    same images; a bundle that loses more than --max-drop is not written.
    """
    from smart_export import report as show  # noqa: PLC0415  # these load torch and onnx, for which --help need not wait
    from smart_export.build import build_bundle  # noqa: PLC0415  # as above
    from smart_export.evidence import calibrating_evidence, judging_evidence  # noqa: PLC0415  # as above
    from smart_export.publish import check_output  # noqa: PLC0415  # as above
    from smart_export.rtx import parse_capabilities, target_note, together  # noqa: PLC0415  # as above
    from smart_export.verify import check_max_drop  # noqa: PLC0415  # as above
    from smart_runtime.bundle.bundle import Bundle  # noqa: PLC0415  # as above
    from smart_runtime.bundle.signatures import load_private_key  # noqa: PLC0415  # as above

    start_seconds = seconds_since_start() or 0.0  # imports take a good part of a small export
    device = resolve_target(target, jetpack=jetpack)
    output = output or given.bundle(device.name)
    check_output(output, force=force)
    check_max_drop(max_drop / 100)
    if calibration is not None and precision != INT8:
        raise click.UsageError(f"--calibration is for --precision int8; {precision} has no ranges to find.")
    read = [*given.files, dense_control, sign, *map(data_place, (data, calibration)), places.data_dir, own.file]
    show.check_places(bundle=output, report=report, target=target, inputs=read)
    capabilities = () if rtx is None else parse_capabilities(rtx, target=device)
    key = None if sign is None else load_private_key(sign)
    for note in (target_note(device, capabilities) if capabilities else None, device.profile.export_only):
        if note is not None:
            house.note(f"note: {note}")
    stopwatch = Stopwatch(on_phase=print_phase) if house.is_verbose() else Stopwatch()
    stopwatch.add("start", start_seconds)
    with stopwatch.phase("load checkpoint"):
        sources, digests = given.read(own.load)
    judge = calibrate = None
    if data is not None:
        with stopwatch.phase("load and attack --data"):
            made = partial(judging_evidence, images=data_images, progress=house.progress)
            judge = sources.evidence(partial(made, images_for(data, places, sources)))
    if calibration is not None:
        with stopwatch.phase("load and attack --calibration"):
            made = partial(calibrating_evidence, images_for(calibration, places, sources), progress=house.progress)
            calibrate = sources.evidence(made)
    steps = (len(sources.paths) + int(baseline == DENSE)) * (1 + len(together(capabilities)))
    # TensorRT-RTX prints some warnings past the logger that it is given, as of a constant that fp16 rounds.
    with house.only_results_on_stdout(), house.progress("exporting", total=steps) as advance:
        result = build_bundle(
            sources,
            output=output,
            target=device,
            precision=precision,
            baseline=baseline == DENSE,
            default_path=default_path,
            judge=judge,
            calibrate=calibrate,
            dense_control=given.control(dense_control, sources, load=own.load),
            max_drop=max_drop / 100,
            undecided=undecided,
            mixes=mixes(),
            rtx=capabilities,
            allow_slow_structure=allow_slow_structure,
            force=force,
            sign=key,
            on_step=advance,
            stopwatch=stopwatch,
        )
    found = {
        **show.summary(result),
        **digests,  # other commands' results tell by these which checkpoint became which bundle
        "bundle_digest": Bundle.open(output).digest,
        "timings": stopwatch.seconds,
        "peak_bytes": peak_bytes(),
    }
    if report is not None:
        show.write_report(report, result)
    if house.is_verbose():
        print_total(stopwatch, peak=found["peak_bytes"])
    house.warn(result.warnings)
    # Leaving Python looks through every object for garbage: 1.6 s after a conversion, and the process ends anyway.
    gc.freeze()
    if as_json:
        house.print_json(found)
    else:
        print_result(result, found)


@main.command(epilog="Example: smart-export check bundle/ --source ckpt.pt, or smart-export check model.onnx")
@click.argument("place", metavar="BUNDLE|FILE.onnx", type=_FILE)
@click.option(
    "--source", type=_FILE, metavar="CKPT", help="Also check that the graphs are the paths of this checkpoint."
)
@click.option("--clean", type=_FILE, metavar="CKPT", help="Likewise, of two separate networks, with --robust.")
@click.option("--robust", type=_FILE, metavar="CKPT", help="Likewise.")
@own_network_options
@trust_option
@engine_option(REFERENCE_ENGINE)
@click.option("--target", metavar="NAME", help="Of a file: say where this device would gain from the pattern.")
@click.option("--pattern", metavar="N:M", help="Of a file: the pattern of zeros to look for.  [default: 2:4]")
@house.json_option
def check(
    *,
    place: Path,
    source: Path | None,
    clean: Path | None,
    robust: Path | None,
    own: OwnNetwork,
    trust: Path | None,
    engine: str | None,
    target: str | None,
    pattern: str | None,
    as_json: bool,
) -> None:
    """Check every byte of BUNDLE, its manifest and its graphs, and run each graph.

    Of an ONNX file, whoever made it, say layer by layer what it costs and where its zeros are; it is not run.
    """
    others: dict[str, object] = {"--target": target, "--pattern": pattern}
    needs = f"is for an ONNX file, and {place} is none"
    if place.is_file():
        others = {"--source": source, "--clean": clean, "--robust": robust, "--trust": trust, "--engine": engine}
        needs = f"is for a bundle, and {place} is a file"
    for name, value in others.items():
        if value is not None:
            raise ExportError(f"{name} {needs}; leave it out, or name the other")
    if place.is_file():
        _check_file(place, target=target, pattern=pattern, as_json=as_json)
    else:
        if (clean is None) != (robust is None) or (source is not None and clean is not None):
            raise click.UsageError("Give --source with all paths, or --clean and --robust with a path each.")
        given = (("", source), ("clean", clean), ("robust", robust))
        sources = {path: file for path, file in given if file is not None}
        _check_bundle(place, sources=sources, own=own, trust=trust, engine=engine, as_json=as_json)


def _check_file(file: Path, *, target: str | None, pattern: str | None, as_json: bool) -> None:
    from smart_export import report as show  # noqa: PLC0415  # loads onnx
    from smart_export.patterns import parse_pattern  # noqa: PLC0415  # as above
    from smart_export.sparsity import sparsity_of_onnx  # noqa: PLC0415  # as above
    from smart_train.masking.n_of_m import TWO_FOUR  # noqa: PLC0415  # as above

    check_outputs(inputs=[file])
    device = None if target is None else resolve_target(target)
    found = sparsity_of_onnx(file, pattern=TWO_FOUR if pattern is None else parse_pattern(pattern), target=device)
    if as_json:
        house.print_json({"file": str(file), **show.file_report(found, device)})
        return
    macs = "unknown" if found.macs is None else si(found.macs)
    title = f"{file}: {macs} MACs an image, {found.parameters:,} parameters in {len(found.layers)} layers"
    house.print_wide(house.table(title, *show.file_table(found, device), text_columns=4))
    print_lines(show.file_reasons(found, device))


def _check_bundle(
    bundle: Path,
    *,
    sources: dict[str, Path],
    own: OwnNetwork,
    trust: Path | None,
    engine: str | None,
    as_json: bool,
) -> None:
    from smart_export.check import check_bundle  # noqa: PLC0415  # loads torch and onnx
    from smart_runtime.bundle.bundle import Bundle  # noqa: PLC0415  # as above

    check_outputs(inputs=[bundle, trust, *sources.values(), own.file])
    opened = Bundle.open(bundle, trust=trust)
    origins = {path: own.load(file) for path, file in sources.items()}
    source = origins.get("", origins or None)
    result = check_bundle(opened, source=source, engine=engine or REFERENCE_ENGINE)
    if as_json:
        house.print_json(
            {
                "bundle": str(bundle),
                "ok": True,
                "signed": opened.signed,
                "signed_by": opened.signer,
                "checks": [asdict(finding) for finding in result.findings],
                "paths": {name: asdict(found) for name, found in result.agreements.items()},
            }
        )
        return
    rows = [[finding.check, finding.detail] for finding in result.findings]
    house.console().print(house.table(f"{bundle}: all holds", ["check", "result"], rows, text_columns=2))


@main.command(epilog="Example: smart-export keygen release")
@click.argument("key", type=_FILE)
@house.json_option
def keygen(*, key: Path, as_json: bool) -> None:
    """Make a pair of Ed25519 keys: KEY, which signs bundles and stays secret, and KEY.pub, which checks them."""
    from smart_export.signing import write_key_pair  # noqa: PLC0415  # loads the bundle's reader

    pair = write_key_pair(key)
    if as_json:
        house.print_json({"key": str(pair.private), "public": str(pair.public), "fingerprint": pair.fingerprint})
        return
    private = f"private key {pair.private}: keep it secret, sign with smart-export build --sign {pair.private}"
    public = f"public key {pair.public}: give it to the devices, which check with --trust {pair.public.name}"
    print_lines([private, public, f"fingerprint {pair.fingerprint}"])


@main.command(epilog="Example: smart-export info ckpt.pt")
@click.argument("checkpoint", type=_FILE)
@own_network_options
@house.json_option
def info(*, checkpoint: Path, own: OwnNetwork, as_json: bool) -> None:
    """Describe CHECKPOINT: network, paths, densities, training and figures. For a bundle there is `smart-run info`."""
    from smart_export import report as show  # noqa: PLC0415  # loads torch
    from smart_train.checkpoint.described_masks import describe_masks  # noqa: PLC0415  # loads torch
    from smart_train.checkpoint.format import describe  # noqa: PLC0415  # as above

    if checkpoint.is_dir():
        raise ExportError(f"{checkpoint} is a folder, not a checkpoint; smart-run info describes a bundle")
    check_outputs(inputs=[checkpoint, own.file])
    loaded = own.load(checkpoint)
    found = describe(loaded)
    warnings = warnings_of_metrics({path: loaded.role(path) for path in loaded.net.path_names}, loaded.metrics)
    house.warn(warnings)
    if as_json:
        house.print_json({"checkpoint": str(checkpoint), **found, "warnings": list(warnings)})
        return
    print_lines(show.checkpoint_lines(found, describe_masks(loaded.net, training=loaded.training)))
    keys = ("density", "parameter_density", "clean_accuracy", "robust_accuracy")
    rows = [
        [path, *(f"{row[key]:.3f}" if isinstance(row.get(key), float) else "" for key in keys)]
        for path, row in found["paths"].items()
    ]
    house.console().print(house.table("", ["path", "density", "parameters", "clean accuracy", "robust accuracy"], rows))


if __name__ == "__main__":
    main()
