"""What the tripwire notices on the demo's network over three seeds, and what it costs.

    .venv/bin/python benchmarks/bench_tripwire.py attacks --work FOLDER
    .venv/bin/python benchmarks/bench_tripwire.py speed --work FOLDER

`attacks` trains recipes/digits.toml with each seed and measures it by smart-eval --policy tripwire, each a process of
its own whose result stays in FOLDER and is not made again; writes benchmarks/results/tripwire.json. `speed` exports the
first of these networks and times calls of one image without a policy and with the tripwire, in interleaved blocks of
one process; writes benchmarks/results/tripwire_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from smart_common.children import python_command
from smart_common.files import replacing
from smart_runtime import SmartModel
from smart_runtime.bench.environment import read_environment
from smart_runtime.policies import Tripwire

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes/digits.toml"
SEEDS = range(3)
EVERY = 10
SHOWN = ("aimed-at-clean", "aimed-at-robust", "aimed-at-both", "silent", "adaptive", "alarmist")


def run(kept: Path, module: str, *arguments: str) -> dict[str, Any]:
    """Return the --json of one of our commands, kept in a file; exit where it fails."""
    if not kept.exists():
        print(f"{module} {' '.join(arguments)}", file=sys.stderr, flush=True)
        done = subprocess.run(
            python_command(module, *arguments, "--json"),
            stdout=subprocess.PIPE,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        if done.returncode:
            sys.exit(f"error: {module} ended with status {done.returncode}; see above")
        with replacing(kept) as file:
            file.write(done.stdout)
    found: dict[str, Any] = json.loads(kept.read_bytes())
    return found


def trained(work: Path, seed: int) -> Path:
    """Return the checkpoint of one seed."""
    checkpoint = work / f"ckpt-{seed}.pt"
    going_on = ["--resume"] if (work / f"ckpt-{seed}.last.pt").exists() else []
    told = ("--recipe", str(RECIPE), "--seed", str(seed), "-o", str(checkpoint), *going_on)
    run(work / f"train-{seed}.json", "smart_train.cli", *told)
    return checkpoint


def attacks(work: Path) -> dict[str, Any]:
    """Return what smart-eval says of each seed's network."""
    runs = []
    for seed in SEEDS:
        told = ("--attack", "clean", "--policy", "tripwire", "--seed", str(seed))
        found = run(work / f"eval-{seed}.json", "smart_eval.cli", str(trained(work, seed)), *told)
        (model,) = found["models"]
        clean = {path: one["clean_accuracy"] for path, one in model["paths"].items()}
        runs.append({"seed": seed, "clean_accuracy": clean, "tripwire": model["tripwire"]})
    return {"command": "python benchmarks/bench_tripwire.py attacks --work FOLDER", "threads": 1, "runs": runs}


def speed(work: Path, *, blocks: int, calls: int) -> dict[str, Any]:
    """Return throughput and 99th percentile with the tripwire over those without, by threads of the engine."""
    bundle = work / "bundle"
    told = (str(trained(work, 0)), "--target", "cpu", "-o", str(bundle), "--force")
    run(work / "export.json", "smart_export.cli", *told)
    rows = []
    for threads in (1, 2):
        images = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
        with (
            SmartModel.load(bundle, threads=threads) as without,
            SmartModel.load(
                bundle, threads=threads, policy=Tripwire(every=EVERY, false_alarms_per_day=1e-6)
            ) as watched,
        ):
            taken: dict[str, list[list[int]]] = {"without": [], "with": []}
            for _ in range(blocks):
                for name, model in (("without", without), ("with", watched)):
                    taken[name].append(timed(model, images, calls))
            assert isinstance(watched.policy, Tripwire)
            status = watched.policy.status()
        throughput = [sum(a) / sum(b) for a, b in zip(taken["without"], taken["with"], strict=True)]
        late = [
            np.quantile(b, 0.99) / np.quantile(a, 0.99) for a, b in zip(taken["without"], taken["with"], strict=True)
        ]
        rows.append(
            {
                "threads": threads,
                "call_us": median(median(block) for block in taken["without"]) / 1e3,
                "throughput_ratio": {"median": median(throughput), "low": min(throughput), "high": max(throughput)},
                "p99_ratio": {"median": median(late), "low": min(late), "high": max(late)},
                "shadow_runs": status["shadow_runs_total"],
                "dropped": status["dropped_total"],
            }
        )
    return {
        "command": "python benchmarks/bench_tripwire.py speed --work FOLDER",
        "network": "the demo's, 1x8x8, batch 1",
        "every": EVERY,
        "blocks": blocks,
        "calls_in_a_block": calls,
        "rows": rows,
    }


def timed(model: SmartModel, images: np.ndarray[Any, np.dtype[np.float32]], calls: int) -> list[int]:
    """Return the nanoseconds of each call, the first few of the block left out."""
    taken = []
    for _ in range(calls + 20):
        start = time.perf_counter_ns()
        model(images)
        taken.append(time.perf_counter_ns() - start)
    return taken[20:]


def table(record: dict[str, Any]) -> str:
    """Return what becomes of each attacker as Markdown: means over the seeds, with the lowest and the highest."""
    found = [one["tripwire"] for one in record["runs"]]
    every = str(EVERY)
    lines = [
        f"| attacker | AUC ({found[0]['score']}) | clean path wrong | wrong and unseen | robust path wrong | frames to "
        "the alarm, all attacked | half | a fifth |",
        f"|{' --- |' * 8}",
    ]
    for name in SHOWN:
        kinds = [one["attacked"][name] for one in found]
        cells = [f"{fmean(kind['auc'][one['score']] for kind, one in zip(kinds, found, strict=True)):.3f}"]
        cells += [
            _spread([kind[key] for kind in kinds])
            for key in ("clean_path_wrong", "unseen_and_wrong", "robust_path_wrong")
        ]
        for share in ("1", "0.5", "0.2"):
            alarms = [kind["frames_to_alarm"][every][share]["median"] for kind in kinds]
            cells.append(", ".join("none" if one is None else f"{one:.0f}" for one in alarms))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def score_table(record: dict[str, Any]) -> str:
    """Return AUC and median frames to the alarm for each score as Markdown, means over the seeds."""
    found = [one["tripwire"]["scores"] for one in record["runs"]]
    scores = list(found[0])
    lines = [f"| attacker | {' | '.join(scores)} |", f"|{' --- |' * (1 + len(scores))}"]
    for name in SHOWN:
        cells = []
        for score in scores:
            alarms = [one[score][name]["frames_to_alarm"] for one in found]
            cells.append(f"{fmean(one[score][name]['auc'] for one in found):.3f}; {_mean_or_none(alarms)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_table(record: dict[str, Any]) -> str:
    """Return what the tripwire costs as Markdown."""
    lines = ["| threads of the engine | throughput, with over without | 99th percentile, with over without |"]
    lines.append(f"|{' --- |' * 3}")
    for row in record["rows"]:
        cells = [
            f"{row[key]['median']:.2f} ({row[key]['low']:.2f} to {row[key]['high']:.2f})"
            for key in ("throughput_ratio", "p99_ratio")
        ]
        lines.append(f"| {row['threads']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_or_none(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.0f}" if len(known) == len(values) else "none"


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["attacks", "speed"])
    parser.add_argument("--work", type=Path, required=True, help="where results lie that are not to be made again")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2000, help="in a block")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    environment = asdict(read_environment(packages=("torch",)))
    if options.which == "attacks":
        record, name = attacks(options.work), "tripwire"
    else:
        record, name = speed(options.work, blocks=options.blocks, calls=options.calls), "tripwire_speed"
    record |= {"environment": environment}
    output = ROOT / f"benchmarks/results/{name}.json"
    output.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(record) if options.which == "attacks" else speed_table(record))


if __name__ == "__main__":
    main()
