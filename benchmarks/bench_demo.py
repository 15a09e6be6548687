"""The demo on several seeds: what the README's table says, and the goals it is held to.

    .venv/bin/python benchmarks/bench_demo.py

Each seed is a whole run of examples/01_demo.py (train, evaluate, export, compare). Accuracies are of the test split,
robust ones under PGD-20 at the demo's eps; speed-ups are ratios of medians of interleaved blocks in one process. Writes
benchmarks/results/demo.json with the environment, beside it the first seed's plot, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/demo.json"
GRAPHS = ("dense", "clean", "robust")


def run_demo(seed: int, *, plot: Path | None) -> dict[str, Any]:
    """Run the demo with ``seed``, keep its plot at ``plot`` and return what its four commands said."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "examples/01_demo.py"), "--seed", str(seed), "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        said = {
            name: json.loads((Path(folder) / f"smart-{name}.json").read_text()) for name in ("train", "eval", "bench")
        }
        export = json.loads((Path(folder) / "smart-export.json").read_text())
        if plot is not None:
            shutil.copy(Path(folder) / "bench.png", plot)
    rows = {row["name"]: row for row in said["bench"]["rows"]}
    return {
        "seed": seed,
        "train_seconds": said["train"]["seconds"],
        "best_epoch": said["train"]["best_epoch"],
        "union_density": said["train"]["union_density"],
        "examples": said["eval"]["examples"],
        "attack": said["eval"]["attack"],
        "accuracy": {
            path: {key: figures[key] for key in ("clean_accuracy", "robust_accuracy")}
            for path, figures in said["eval"]["paths"].items()
        },
        "max_rel_diff": {path: export["paths"][path]["max_rel_diff"] for path in export["paths"]},
        "rows": {
            name: {
                k: rows[name][k]
                for k in ("median_ms", "solo_median_ms", "speedup", "speedup_low", "speedup_high", "mac_ratio", "bytes")
            }
            for name in GRAPHS
        },
        "batch": said["bench"]["batch"],
        "threads": said["bench"]["threads"],
        "switch": said["bench"]["switch"],
        "environment": said["bench"]["environment"],
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Return the README's table: means over the seeds, accuracies with their range."""

    def accuracy(path: str, key: str) -> str:
        values = [run["accuracy"][path][key] for run in runs]
        return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    def mean(name: str, key: str) -> float:
        return float(statistics.mean(run["rows"][name][key] for run in runs))

    lines = [
        "| graph | clean accuracy | PGD-20 accuracy | latency | speed-up | size |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in GRAPHS:
        keys = ("clean_accuracy", "robust_accuracy")
        accuracies = ["not trained"] * 2 if name == "dense" else [accuracy(name, key) for key in keys]
        latency = f"{mean(name, 'median_ms') * 1000:.0f} us"
        speed_up, size = f"{mean(name, 'speedup'):.2f}x", f"{mean(name, 'bytes') / 1e6:.2f} MB"
        lines.append(f"| {name} | {' | '.join([*accuracies, latency, speed_up, size])} |")
    return "\n".join(lines)


def goals(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the means over the seeds are held to, and whether they reach it."""

    def accuracy(path: str, key: str) -> float:
        return float(statistics.mean(run["accuracy"][path][f"{key}_accuracy"] for run in runs))

    found = [
        (
            "both paths at least 0.95 on clean images",
            min(accuracy("clean", "clean"), accuracy("robust", "clean")),
            0.95,
        ),
        ("clean path 0.015 above on clean images", accuracy("clean", "clean") - accuracy("robust", "clean"), 0.015),
        ("robust path 0.25 above under PGD-20", accuracy("robust", "robust") - accuracy("clean", "robust"), 0.25),
        (
            "every speed-up of the demo at least 1.8",
            min(run["rows"][path]["speedup"] for run in runs for path in ("clean", "robust")),
            1.8,
        ),
    ]
    return [{"goal": goal, "value": value, "reached": value >= least} for goal, value, least in found]


def main() -> None:
    """Run the benchmark; exit with status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    first = options.seeds[0]
    runs = [run_demo(seed, plot=RESULT.with_suffix(".png") if seed == first else None) for seed in options.seeds]
    command = f"python benchmarks/bench_demo.py --seeds {' '.join(map(str, options.seeds))}"
    RESULT.write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    print(table(runs))
    switch = [run["switch"] for run in runs]
    print(
        f"\nswitch {statistics.mean(s['median_us'] for s in switch):.2f} us, first result "
        f"{statistics.mean(s['first_result_ms'] for s in switch):.3f} ms, cold load "
        f"{statistics.mean(s['cold_load_ms'] for s in switch):.1f} ms; "
        f"training {statistics.mean(run['train_seconds'] for run in runs):.0f} s"
    )
    missed = [f"{goal['goal']}: {goal['value']:.3g}" for goal in goals(runs) if not goal["reached"]]
    print("missed: " + "; ".join(missed) if missed else "all goals reached")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
