"""Both paths of a small network on a part of CIFAR-10, against a dense control of the same cost, on two cores.

    .venv/bin/python benchmarks/bench_cifar.py --data folder:DIR

DIR holds CIFAR-10 as pictures, train/CLASS/*.jpg and test/CLASS/*.jpg; without --data it is what the variable
SMART_EDGE_CIFAR10_FOLDER names (any --data of smart-train will do: cifar10 for one). recipes/cifar10-small.toml is
trained twice: as it is, and as a control without masks (density 1), a narrower network that needs as many
multiply-accumulates an image as a masked path does. The control too has a set of batch norms for each path, so the only
difference is whether the cost is saved by masks or by width. Both are measured clean and under PGD-50 with 5 restarts.
Writes benchmarks/results/cifar.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smart_common.children import python_command
from smart_devices import resolve_target
from smart_export import build_bundle
from smart_export.layers import network_cost
from smart_runtime.bench.environment import read_environment
from smart_runtime.bundle.bundle import Bundle
from smart_train import load_checkpoint
from smart_train.architectures.build import build_network
from smart_train.training.recipe import read_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/cifar.json"
RECIPE = ROOT / "recipes/cifar10-small.toml"
GOAL_MINUTES = 20  # on two cores
FOLDER_VARIABLE = "SMART_EDGE_CIFAR10_FOLDER"


def run(module: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run one of our commands with --json; its notes go to standard error."""
    command = python_command(module, *arguments, "--json")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, env=environment)
    if done.returncode != 0:
        sys.exit(done.returncode)  # the command has said why
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def dense_macs(model: str, *, width: int, shape: tuple[int, int, int], classes: int) -> int:
    """Return the multiply-accumulates of an unmasked network for one image."""
    network = build_network(
        model, num_classes=classes, in_channels=shape[0], arguments={"width": width}, generator_seed=0
    )
    return network_cost(network.eval(), dense=network, input_shape=shape).macs


def width_of_cost(macs: int, *, model: str, shape: tuple[int, int, int], classes: int, most: int) -> int:
    """Return the width, up to ``most``, whose unmasked network comes closest to ``macs``."""
    return min(
        range(1, most + 1),
        key=lambda width: abs(dense_macs(model, width=width, shape=shape, classes=classes) - macs),
    )


def train(options: argparse.Namespace, folder: Path, *extra: str) -> tuple[Path, dict[str, Any]]:
    """Train the recipe with ``extra`` options; return the checkpoint and what smart-train said."""
    checkpoint = folder / "ckpt.pt"
    arguments = ["--recipe", str(RECIPE), "--data", options.data, "--seed", str(options.seed), *extra]
    if options.epochs is not None:
        arguments += ["--epochs", str(options.epochs)]
    return checkpoint, run("smart_train.cli", *arguments, "-o", str(checkpoint), threads=options.threads)


def evaluate(options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Return the accuracies of both paths, clean and under PGD-50 with 5 restarts."""
    return run(
        "smart_eval.cli",
        str(checkpoint),
        *("--data", options.data, "--attack", "pgd", "--steps", str(options.steps)),
        *("--restarts", "5", "--examples", str(options.examples), "--seed", str(options.seed)),
        threads=options.threads,
    )


def network_row(name: str, checkpoint: Path, trained: dict[str, Any], evaluated: dict[str, Any]) -> dict[str, Any]:
    """Export the checkpoint and return all that is to be kept of one network."""
    loaded = load_checkpoint(checkpoint)
    bundle = build_bundle(loaded, output=checkpoint.with_name("bundle"), target=resolve_target("cpu"), baseline=False)
    graphs = Bundle.open(bundle.bundle).manifest.paths
    return {
        "name": name,
        "arguments": loaded.arguments,
        "train_seconds": trained["seconds"],
        "images_per_second": trained["images_per_second"],
        "best_epoch": trained["best_epoch"],
        "paths": {
            path: {
                "macs": graphs[path].macs,
                "bytes": graphs[path].bytes,
                "density": trained["paths"][path]["density"],
                **evaluated["paths"][path],
            }
            for path in graphs
        },
    }


def goal(minutes: float) -> dict[str, Any]:
    """Return what the benchmark itself is held to."""
    words = f"training both networks on a part of CIFAR-10 and attacking them takes under {GOAL_MINUTES} minutes"
    return {"goal": words, "value": minutes, "reached": minutes < GOAL_MINUTES}


def table(rows: list[dict[str, Any]], *, attack: str) -> str:
    """Return the rows as Markdown, accuracies with their 95% intervals."""
    lines = [f"| network | path | MMAC | clean | {attack} |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        for path, found in row["paths"].items():
            accuracies = [
                f"{found[f'{kind}_accuracy']:.3f} ({found[f'{kind}_interval'][0]:.3f} to "
                f"{found[f'{kind}_interval'][1]:.3f})"
                for kind in ("clean", "robust")
            ]
            lines.append(f"| {row['name']} | {path} | {found['macs'] / 1e6:.1f} | {' | '.join(accuracies)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get(FOLDER_VARIABLE)
    parser.add_argument("--data", default=f"folder:{folder}" if folder else None)
    parser.add_argument("--examples", type=int, default=400, help="test images under attack")
    parser.add_argument("--steps", type=int, default=50, help="of the attack")
    parser.add_argument("--epochs", type=int, help="fewer, to try it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch: two on shared cores wait for each other")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.data is None:
        sys.exit(f"error: expected --data or the variable {FOLDER_VARIABLE}, got neither; name a folder of pictures")
    started = time.perf_counter()
    environment = read_environment(packages=("torch",))
    recipe = read_recipe(RECIPE)
    with tempfile.TemporaryDirectory() as place:
        smart, control = Path(place) / "smart", Path(place) / "control"
        smart.mkdir()
        control.mkdir()
        checkpoint, trained = train(options, smart)
        loaded = load_checkpoint(checkpoint)
        rows = [network_row("two masked paths", checkpoint, trained, evaluate(options, checkpoint))]
        width = width_of_cost(
            rows[0]["paths"]["robust"]["macs"],
            model=loaded.architecture,
            shape=loaded.input_shape,
            classes=len(loaded.class_names),
            most=int(loaded.arguments["width"]),
        )
        dense = ("--density", "1", "--align", "1", "--model-arg", f"width={width}")
        checkpoint, trained = train(options, control, *dense)
        rows.append(network_row("dense control", checkpoint, trained, evaluate(options, checkpoint)))
    attack, minutes = f"PGD-{options.steps}x5", (time.perf_counter() - started) / 60
    said = table(rows, attack=attack)
    options.output.write_text(
        json.dumps(
            {
                "command": "python benchmarks/bench_cifar.py --data folder:DIR"
                + "".join(
                    f" --{name} {getattr(options, name)}"
                    for name in ("examples", "steps", "epochs", "seed", "threads")
                    if getattr(options, name) != parser.get_default(name)
                ),
                "data": options.data.partition(":")[0],
                "recipe": recipe,
                "attack": attack,
                "eps": loaded.samples.eps,
                "examples": options.examples,
                "seed": options.seed,
                "threads": options.threads,
                "minutes": minutes,
                "goals": [goal(minutes)],
                "environment": asdict(environment),
                "networks": rows,
            },
            indent=1,
        )
        + "\n"
    )
    print(said)


if __name__ == "__main__":
    main()
