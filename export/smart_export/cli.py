"""``smart-export``: fold a checkpoint into a bundle, check a bundle, describe either."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import click

from smart_devices import resolve_target
from smart_devices.console import cli as house
from smart_devices.version import version
from smart_export.build import BASELINES, build_bundle, check_output, summary
from smart_export.check import check_bundle
from smart_export.errors import ExportError
from smart_export.signing import load_private_key, write_key_pair
from smart_export.timings import Stopwatch, peak_bytes, seconds_since_start
from smart_export.verify import Images
from smart_runtime.bundle import Bundle
from smart_runtime.cli import trust_option
from smart_runtime.manifest import DENSE
from smart_runtime.units import si
from smart_train.checkpoint import Checkpoint, describe, load_checkpoint
from smart_train.data.cli import DataPlaces, data_options
from smart_train.data.load import DATA_SPECS
from smart_train.evaluation.accuracy import to_tensor

MAX_DATA_IMAGES = 1024  # of --data: enough to see a wrong fold, little enough to wait for

_FILE = click.Path(path_type=Path)


@click.group(cls=house.Group, default="build", epilog="Example: smart-export ckpt.pt --target jetson-orin")
@click.version_option(version(), prog_name="smart-export")
def main() -> None:
    """Turn a checkpoint into a bundle: one small ONNX graph a path, verified against the network it came from.

    `smart-export CKPT ...` means `smart-export build CKPT ...`.
    """


def _images(spec: str, checkpoint: Checkpoint, places: DataPlaces) -> Images:
    """Return up to 1,024 test images of ``spec`` as float32 (N, C, H, W)."""
    import torch  # noqa: PLC0415  # already loaded by the checkpoint; named here only for from_numpy

    data = places.load(spec)
    if data.shape != checkpoint.input_shape:
        raise ExportError(
            f"expected images {checkpoint.input_shape} as the network takes, got {data.shape} from {spec}; "
            f"give the data it was trained on"
        )
    images: Images = to_tensor(torch.from_numpy(data.test.images[:MAX_DATA_IMAGES])).numpy()
    return images


@main.command(epilog="Example: smart-export ckpt.pt --target jetson-orin -o bundle")
@click.argument("checkpoint", type=_FILE)
@click.option("--target", required=True, metavar="NAME", help="The device (see smart-devices list).")
@click.option("-o", "--output", type=_FILE, metavar="DIR", help="The bundle.  [default: CHECKPOINT-TARGET beside it]")
@click.option(
    "--baseline",
    default=DENSE,
    show_default=True,
    type=click.Choice(BASELINES),
    help="Add the unmasked network for smart-bench.",
)
@click.option("--data", metavar="SPEC", help=f"Verify on these images too: {DATA_SPECS}.")
@data_options
@click.option("--default-path", metavar="PATH", help="The path a model starts on.  [default: clean]")
@click.option("--force", is_flag=True, help="Replace a bundle that exists.")
@click.option("--sign", type=_FILE, metavar="KEY", help="Sign the bundle with this private key (smart-export keygen).")
@click.option("--verbose", is_flag=True, help="Say on standard error what each phase took.")
@house.json_option
def build(
    *,
    checkpoint: Path,
    target: str,
    output: Path | None,
    baseline: str,
    data: str | None,
    places: DataPlaces,
    default_path: str | None,
    force: bool,
    sign: Path | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Fold every path of CHECKPOINT, convert it to ONNX, verify it, and write the bundle."""
    start_seconds = seconds_since_start() or 0.0  # imports take a good part of a small export
    device = resolve_target(target)
    output = output or checkpoint.with_name(f"{checkpoint.stem}-{target}")
    check_output(output, force=force)
    key = None if sign is None else load_private_key(sign)
    stopwatch = Stopwatch(on_phase=_print_phase) if verbose else Stopwatch()
    stopwatch.add("start", start_seconds)
    with stopwatch.phase("load checkpoint"):
        loaded = load_checkpoint(checkpoint)
    extra = None
    if data is not None:
        with stopwatch.phase("load data"):
            extra = _images(data, loaded, places)
    with_dense = baseline == DENSE
    with house.progress("exporting", total=len(loaded.net.path_names) + int(with_dense)) as advance:
        result = build_bundle(
            loaded,
            output=output,
            target=device,
            baseline=with_dense,
            default_path=default_path,
            extra_images=extra,
            force=force,
            sign=key,
            on_step=advance,
            stopwatch=stopwatch,
        )
    found = {**summary(result), "timings": stopwatch.seconds, "peak_bytes": peak_bytes()}
    if verbose:
        _print_phase("total", seconds_since_start() or sum(stopwatch.seconds.values()))
        house.note(f"peak memory: {si(found['peak_bytes'], 'B')}")
    # Leaving Python looks through every object for garbage: 1.6 s after a conversion, and the process ends anyway.
    gc.freeze()
    if as_json:
        house.print_json(found)
        return
    graphs = {**found["paths"], **({DENSE: found["baseline"]} if found["baseline"] else {})}
    rows = [
        [
            name,
            f"{row['density']:.3f}" if "density" in row else "1",
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            f"{row['bytes']:,}",
            f"{row['max_rel_diff']:.1e}",
        ]
        for name, row in graphs.items()
    ]
    title = f"{output}: {found['precision']} for {device.name}, each graph agrees with its masked path"
    house.console().print(
        house.table(title, ["graph", "density", "parameters", "MACs", "bytes", "max difference"], rows)
    )


def _print_phase(name: str, seconds: float) -> None:
    house.note(f"{name}: {seconds:.2f} s")


@main.command(epilog="Example: smart-export check bundle/ --source ckpt.pt")
@click.argument("bundle", type=_FILE)
@click.option(
    "--source", type=_FILE, metavar="CKPT", help="Also check that the graphs are the paths of this checkpoint."
)
@trust_option
@house.json_option
def check(*, bundle: Path, source: Path | None, trust: Path | None, as_json: bool) -> None:
    """Check every byte of BUNDLE, its manifest and its graphs, and run each graph."""
    opened = Bundle.open(bundle, trust=trust)
    result = check_bundle(opened, source=None if source is None else load_checkpoint(source))
    if as_json:
        house.print_json(
            {
                "bundle": str(bundle),
                "ok": True,
                "signed": opened.signed,
                "signed_by": opened.signer,
                "checks": [{"check": f.check, "detail": f.detail} for f in result.findings],
                "paths": {
                    name: {
                        "max_rel_diff": a.max_rel_diff,
                        "argmax_agreement": a.argmax_agreement,
                        "tolerance": a.tolerance,
                        "images": a.images,
                    }
                    for name, a in result.agreements.items()
                },
            }
        )
        return
    rows = [[f.check, f.detail] for f in result.findings]
    house.console().print(house.table(f"{bundle}: all holds", ["check", "result"], rows, text_columns=2))


@main.command(epilog="Example: smart-export keygen release")
@click.argument("key", type=_FILE)
@house.json_option
def keygen(*, key: Path, as_json: bool) -> None:
    """Make a pair of Ed25519 keys: KEY, which signs bundles and stays secret, and KEY.pub, which checks them."""
    pair = write_key_pair(key)
    if as_json:
        house.print_json({"key": str(pair.private), "public": str(pair.public), "fingerprint": pair.fingerprint})
        return
    for line in (
        f"private key {pair.private}: keep it secret, sign with smart-export build --sign {pair.private}",
        f"public key {pair.public}: give it to the devices, which check with --trust {pair.public.name}",
        f"fingerprint {pair.fingerprint}",
    ):
        house.console().print(line, markup=False, soft_wrap=True)


@main.command(epilog="Example: smart-export info ckpt.pt")
@click.argument("checkpoint", type=_FILE)
@house.json_option
def info(*, checkpoint: Path, as_json: bool) -> None:
    """Describe CHECKPOINT: network, paths, densities, training and figures. For a bundle there is `smart-run info`."""
    if checkpoint.is_dir():
        raise ExportError(f"expected a checkpoint file, got the folder {checkpoint}; smart-run info describes a bundle")
    found = describe(load_checkpoint(checkpoint))
    if as_json:
        house.print_json({"checkpoint": str(checkpoint), **found})
        return
    rows = [
        [path, *(_figure(row, key) for key in ("density", "parameter_density", "clean_accuracy", "robust_accuracy"))]
        for path, row in found["paths"].items()
    ]
    for line in _lines(found):
        house.console().print(line, markup=False, soft_wrap=True)
    house.console().print(house.table("", ["path", "density", "parameters", "clean accuracy", "robust accuracy"], rows))


def _figure(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3f}" if isinstance(row.get(key), float) else ""


def _lines(found: dict[str, Any]) -> list[str]:
    structure, training = found["structure"], found["training"]
    arguments = ", ".join(f"{k} {v}" for k, v in found["arguments"].items())
    shape, classes = " x ".join(map(str, found["input_shape"])), len(found["class_names"])
    metrics = next(iter(found["paths"].values()))
    lines = [
        f"{found['architecture']} ({arguments}), images {shape}, {classes} classes",
        f"structure {structure['name']}, density {structure['density']:g}, align {structure['align']}, "
        f"scope {structure['scope']}, stores {found['union_density']:.1%} of the unmasked network's parameters",
    ]
    if {"method", "epochs", "best_epoch", "seed"} <= training.keys():
        lines.append(
            f"trained with {training['method']} for {training['epochs']} epochs, best {training['best_epoch']}, "
            f"seed {training['seed']}"
        )
    if {"attack", "eps", "split"} <= metrics.keys():
        lines.append(f"figures: {metrics['split']} split, {metrics['attack']} at eps {metrics['eps']:.4g}")
    return lines


if __name__ == "__main__":
    main()
