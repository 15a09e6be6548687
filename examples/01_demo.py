"""The whole idea on handwritten digits: train, export, compare, evaluate, switch.

Runs the commands a user would type, each as a process of its own, and ends with one table. `make demo` runs it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smart_common.children import python_command
from smart_runtime import SmartModel
from smart_train import load_checkpoint

RECIPE = Path(__file__).resolve().parent.parent / "recipes/digits.toml"
MODULES = {
    "smart-train": "smart_train.cli",
    "smart-eval": "smart_eval.cli",
    "smart-export": "smart_export.cli",
    "smart-bench": "smart_runtime.bench.cli",
}


def run(out: Path, command: str, *arguments: str) -> dict[str, Any]:
    """Run one of our commands with --json, keep its result in OUT and return it."""
    print(f"\n$ {' '.join([command, *arguments])}", flush=True)
    done = subprocess.run(python_command(MODULES[command], *arguments, "--json"), stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)  # the command has said why
    (out / f"{command}.json").write_bytes(done.stdout)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def show_switch(bundle: Path, checkpoint: Path) -> None:
    """Answer attacked pictures with one path, switch in place, answer them with the other."""
    samples = load_checkpoint(checkpoint).samples
    labels = samples.labels.numpy()

    def right(model: SmartModel, images: torch.Tensor) -> str:
        return f"{int(np.sum(model(images.numpy()).argmax(axis=1) == labels))} of {len(labels)}"

    with SmartModel.load(bundle) as model:
        print(f"\npath {model.path}: {right(model, samples.images)} validation pictures right")
        print(
            f"path {model.path}: {right(model, samples.adversarial['clean'])} right once they are attacked through it"
        )
        model.path = "robust"
        print(f"path {model.path}: {right(model, samples.adversarial['clean'])} of the same attacked pictures right")
        print(f"path {model.path}: {right(model, samples.adversarial['robust'])} right when attacked through itself")
        stats = model.stats
        print(f"one process, {stats.switches} switch, no reload")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where everything goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--blocks", type=int, default=40, help="blocks of smart-bench")
    parser.add_argument("--examples", type=int, help="test images that smart-eval attacks; all by default")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle, plot, report = out / "ckpt.pt", out / "bundle", out / "bench.png", out / "report.html"

    ours = ("--seed", str(options.seed), "--epochs", str(options.epochs), "-o", str(checkpoint), "--force")
    train = run(out, "smart-train", "--recipe", str(RECIPE), *ours)
    export = run(out, "smart-export", str(checkpoint), "--target", "cpu", "-o", str(bundle), "--force")
    bench = run(out, "smart-bench", str(bundle), "--blocks", str(options.blocks), "--plot", str(plot))
    included = [word for name in ("smart-export", "smart-bench") for word in ("--include", str(out / f"{name}.json"))]
    some = () if options.examples is None else ("--examples", str(options.examples))
    attack = ("--attack", "pgd20x1", *some, "--report", str(report))
    accuracy = run(out, "smart-eval", str(checkpoint), *attack, *included)
    show_switch(bundle, checkpoint)

    rows = {row["name"]: row for row in bench["rows"]}
    print(
        f"\nresnet8 on digits, seed {options.seed}, trained in {train['seconds']:.0f} s; "
        f"{accuracy['examples']} test images, PGD-20 at eps 0.3;\nlatency on this machine's CPU, one thread, batch 1"
    )
    print(f"\n{'path':8}{'clean':>13}{'PGD-20':>8}{'latency':>12}{'speed-up':>10}{'bytes':>12}")
    for name in ("dense", "clean", "robust"):
        figures = accuracy["paths"].get(name)
        accuracies = ["not trained", ""]
        if figures:
            accuracies = [f"{figures[f'{kind}_accuracy']:.3f}" for kind in ("clean", "robust")]
        size = (export["paths"].get(name) or export["baseline"])["bytes"]
        row = rows[name]
        print(
            f"{name:8}{accuracies[0]:>13}{accuracies[1]:>8}{row['median_ms'] * 1000:>9.1f} us"
            f"{row['speedup']:>9.2f}x{size:>12,}"
        )
    switch = bench["switch"]
    print(
        f"\nswitch {switch['median_us']:.1f} us, first result of the new path after {switch['first_result_ms']:.2f} ms "
        f"(a cold load takes {switch['cold_load_ms']:.1f} ms)\nplot: {plot}\n"
        f"all of it on one page: {report}"
    )


if __name__ == "__main__":
    main()
