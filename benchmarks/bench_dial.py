"""Five mixes between the paths of the demo's network and both paths, clean and under AutoAttack, over three seeds.

    .venv/bin/python benchmarks/bench_dial.py --work FOLDER

smart-eval attacks each mix as the mixture that it is, and tries what was made on the other paths and mixes on it. Each
seed is a process of its own whose result stays in FOLDER, beside the networks of bench_tripwire.py, and is not made
again. Writes benchmarks/results/dial.json with the environment and prints the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from bench_tripwire import SEEDS, run, trained

from smart_runtime.bench.environment import read_environment

RESULT = Path(__file__).resolve().parent / "results/dial.json"
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def measured(work: Path, seed: int, images: int) -> dict[str, Any]:
    """Return what smart-eval says of one seed's network and its mixes."""
    mixes = [word for share in SHARES for word in ("--mix", str(share))]
    told = ("--attack", "autoattack", "--no-checks", "--examples", str(images), "--seed", str(seed), *mixes)
    (model,) = run(work / f"dial-{seed}.json", "smart_eval.cli", str(trained(work, seed)), *told)["models"]
    paths = {
        name: {"clean": one["clean_accuracy"], "autoattack": one["attacks"]["autoattack"]["accuracy"]}
        for name, one in model["paths"].items()
    }
    return {"seed": seed, "images": images, "eps": model["eps"], "paths": paths, "threats": model["threats"]}


def table(record: dict[str, Any]) -> str:
    """Return accuracies by path and mix as Markdown: means over the seeds, with the lowest and the highest."""
    runs = record["runs"]
    between = sorted(runs[0]["paths"].keys() - {"clean", "robust"}, key=lambda name: int(name.removeprefix("mix-")))
    lines = ["| | clean | under AutoAttack |", f"|{' --- |' * 3}"]
    for name in ("clean", *between, "robust"):
        cells = []
        for what in ("clean", "autoattack"):
            values = [one["paths"][name][what] for one in runs]
            cells.append(f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where results lie that are not to be made again")
    parser.add_argument("--images", type=int, default=200, help="test images of each seed")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    environment = asdict(read_environment(packages=("torch", "pyautoattack")))
    runs = [measured(options.work, seed, options.images) for seed in SEEDS]
    record = {
        "command": "python benchmarks/bench_dial.py --work FOLDER",
        "runs": runs,
        "environment": environment,
    }
    RESULT.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
