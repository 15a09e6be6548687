"""``smart-eval``: clean and robust accuracy of each path of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from smart_devices.console import cli as house
from smart_devices.version import version
from smart_train.architectures.cli import OwnNetwork, own_network_options
from smart_train.attacks import Attack
from smart_train.data.cli import DataPlaces, data_options
from smart_train.data.load import DATA_SPECS, NAMED
from smart_train.errors import ConfigError, DataError
from smart_train.evaluation.accuracy import evaluate_path, some_examples
from smart_train.options import parse_fraction


@click.command(
    cls=house.Command,
    context_settings={"show_default": True},
    epilog="Example: smart-eval ckpt.pt --attack pgd --steps 20 --restarts 1",
)
@click.argument("checkpoint", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--attack", default="pgd", type=click.Choice(["pgd"]), help="White-box, on each path itself.")
@click.option("--steps", default=20)
@click.option("--restarts", default=1)
@click.option("--step-size", help="In pixel units.  [default: 2.5 eps / steps]")
@click.option("--eps", help="Radius in pixel units: 0.3, 8/255.  [default: the checkpoint's]")
@click.option("--examples", type=int, help="Measure on this many test images, chosen by the seed.  [default: all]")
@click.option("--data", help=f"{DATA_SPECS}.  [default: what it was trained on, where its name says all]")
@data_options
@own_network_options
@click.option("--seed", default=0, type=click.IntRange(0, 2**32 - 1))
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@house.json_option
@click.version_option(version(), prog_name="smart-eval")
def main(
    *,
    checkpoint: Path,
    attack: str,
    steps: int,
    restarts: int,
    step_size: str | None,
    eps: str | None,
    examples: int | None,
    data: str | None,
    places: DataPlaces,
    own: OwnNetwork,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Measure each path of CHECKPOINT on the test split, clean and under an attack on that path, with 95% intervals."""
    found = own.load(checkpoint)
    record = found.training.get("data")
    record = record if isinstance(record, dict) else {}
    trained_on = str(record.get("kind", "other data"))
    if data is None and trained_on not in NAMED:
        raise ConfigError(f"expected --data for a network trained on {trained_on}, got none; give the same data again")
    images = places.load(data or trained_on)
    if images.shape != found.input_shape or len(images.class_names) != len(found.class_names):
        raise DataError(
            f"expected images {found.input_shape} of {len(found.class_names)} classes as the network was trained on, "
            f"got {images.shape} of {len(images.class_names)}; give the data it was trained on"
        )
    if images.digest != record.get("digest"):
        house.note("warning: these are not the very images of the training: test images may have been trained on")
    split = images.test
    if examples is not None:
        split = some_examples(split, examples, seed=seed)
    chosen = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    if chosen == "cuda" and not torch.cuda.is_available():
        raise ConfigError("expected a CUDA device that torch can use, got none; use --device cpu")
    strength = Attack(
        name="pgd",
        eps=found.samples.eps if eps is None else parse_fraction(eps),
        steps=steps,
        restarts=restarts,
        step_size=None if step_size is None else parse_fraction(step_size),
    )
    net = found.net.to(chosen)
    results = {}
    with house.progress(f"{attack} on {len(split)} images", total=len(split) * len(net.path_names)) as advance:
        for path in net.path_names:
            results[path] = evaluate_path(
                net.path(path),
                split,
                attack=strength,
                generator=torch.Generator(device=chosen).manual_seed(seed),
                device=chosen,
                done=lambda count: advance(count=count),
            )
    if as_json:
        house.print_json(
            {
                "checkpoint": str(checkpoint),
                "attack": {
                    "name": strength.name,
                    "eps": strength.eps,
                    "steps": strength.steps,
                    "restarts": strength.restarts,
                },
                "examples": len(split),
                "seed": seed,
                "split": "test",
                "paths": {
                    path: {
                        "clean_accuracy": r.clean.value,
                        "clean_interval": list(r.clean.interval),
                        "robust_accuracy": r.robust.value,
                        "robust_interval": list(r.robust.interval),
                    }
                    for path, r in results.items()
                },
            }
        )
        return
    rows = [
        [path, *(f"{a.value:.3f}  [{a.interval[0]:.3f}, {a.interval[1]:.3f}]" for a in (r.clean, r.robust))]
        for path, r in results.items()
    ]
    title = (
        f"{checkpoint}: {len(split)} test images, {strength.label}, eps {strength.eps:.4g}, seed {seed}, 95% intervals"
    )
    house.console().print(house.table(title, ["path", "clean", "robust"], rows))


if __name__ == "__main__":
    main()
