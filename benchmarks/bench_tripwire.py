"""What the tripwire notices on the demo's network over three seeds, and what it costs.

    .venv/bin/python benchmarks/bench_tripwire.py attacks --work FOLDER
    .venv/bin/python benchmarks/bench_tripwire.py attacks --work FOLDER --network cifar=ckpt.pt -- --data npz:FILE
    .venv/bin/python benchmarks/bench_tripwire.py speed --work FOLDER [--network cifar=ckpt.pt --calls 100]

`attacks` trains recipes/digits.toml with each seed and measures it by smart-eval --policy tripwire, each a process of
its own whose result stays in FOLDER and is not made again; writes benchmarks/results/tripwire.json, or measures a
network of yours with the options of smart-eval after `--` and writes tripwire_NAME.json. `speed` exports the first of
the demo's networks, or yours, and times calls of one image without a policy and with the tripwire, in interleaved
blocks of one process; it writes benchmarks/results/tripwire_speed.json, or replaces the network's rows there.
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
from smart_train import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
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


def exported(name: str, checkpoint: Path, work: Path) -> Path:
    """Return the bundle of a network."""
    bundle = work / f"bundle-{name}"
    told = (str(checkpoint), "--target", "cpu", "-o", str(bundle), "--force")
    run(work / f"export-{name}.json", "smart_export.cli", *told)
    return bundle


def attacks(networks: dict[str, Path], work: Path, also: list[str]) -> dict[str, Any]:
    """Return what smart-eval says of each network, by name; ``also`` are more options of it."""
    runs = []
    for seed, (name, checkpoint) in enumerate(networks.items()):
        told = ("--attack", "clean", "--policy", "tripwire", "--seed", str(seed), *also)
        found = run(work / f"eval-{name}.json", "smart_eval.cli", str(checkpoint), *told)
        (model,) = found["models"]
        clean = {path: one["clean_accuracy"] for path, one in model["paths"].items()}
        runs.append({"network": name, "seed": seed, "clean_accuracy": clean, "tripwire": model["tripwire"]})
    return {"command": " ".join(["python benchmarks/bench_tripwire.py", *sys.argv[1:]]), "threads": 1, "runs": runs}


def speed(name: str, checkpoint: Path, work: Path, *, blocks: int, calls: int) -> list[dict[str, Any]]:
    """Return throughput and 99th percentile with the tripwire over those without, by threads of the engine."""
    bundle = exported(name, checkpoint, work)
    loaded = load_checkpoint(checkpoint)
    assert loaded.samples is not None
    frames = loaded.samples.images.numpy()
    rows = []
    for threads in (1, 2):
        with (
            SmartModel.load(bundle, threads=threads) as without,
            SmartModel.load(
                bundle, threads=threads, policy=Tripwire(every=EVERY, false_alarms_per_day=1e-4)
            ) as watched,
        ):
            taken: dict[str, list[list[int]]] = {"without": [], "with": []}
            for _ in range(blocks):
                for which, model in (("without", without), ("with", watched)):
                    taken[which].append(timed(model, frames, calls))
            assert isinstance(watched.policy, Tripwire)
            status = watched.policy.status()
            assert status["alarms_total"] == 0, "an alarm: the robust path answered some of these calls"
        throughput = [sum(a) / sum(b) for a, b in zip(taken["without"], taken["with"], strict=True)]
        late = [
            np.quantile(b, 0.99) / np.quantile(a, 0.99) for a, b in zip(taken["without"], taken["with"], strict=True)
        ]
        rows.append(
            {
                "network": f"{name}, {loaded.architecture}, {'x'.join(map(str, loaded.input_shape))}",
                "threads": threads,
                "calls_in_a_block": calls,
                "call_us": median(median(block) for block in taken["without"]) / 1e3,
                "throughput_ratio": {"median": median(throughput), "low": min(throughput), "high": max(throughput)},
                "p99_ratio": {"median": median(late), "low": min(late), "high": max(late)},
                "shadow_runs": status["shadow_runs_total"],
                "dropped": status["dropped_total"],
            }
        )
    return rows


def timed(model: SmartModel, frames: np.ndarray[Any, np.dtype[np.uint8]], calls: int) -> list[int]:
    """Return the nanoseconds of each call, of one frame each, the first few of the block left out."""
    taken = []
    for number in range(calls + 20):
        frame = frames[number % len(frames)][None]
        start = time.perf_counter_ns()
        model(frame)
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
    lines = ["| network | a call without, ms | threads of the engine | throughput, with : without | 99th percentile |"]
    lines.append(f"|{' --- |' * 5}")
    for row in record["rows"]:
        cells = [
            f"{row[key]['median']:.2f} ({row[key]['low']:.2f} to {row[key]['high']:.2f})"
            for key in ("throughput_ratio", "p99_ratio")
        ]
        lines.append(f"| {row['network']} | {row['call_us'] / 1e3:.3g} | {row['threads']} | {' | '.join(cells)} |")
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
    parser.add_argument("--network", metavar="NAME=CKPT", help="one of yours in the place of the demo's")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2000, help="in a block")
    told, also = sys.argv[1:], []
    if "--" in told:
        told, also = told[: told.index("--")], told[told.index("--") + 1 :]
    options = parser.parse_args(told)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"environment": asdict(read_environment(packages=("torch",)))}
    own = dict([options.network.split("=", 1)]) if options.network else {}
    networks = {name: Path(file) for name, file in own.items()}
    if options.which == "attacks":
        name = "".join(["tripwire", *(f"_{name}" for name in own)])
        record |= attacks(networks or {str(seed): trained(work, seed) for seed in SEEDS}, work, also)
    else:
        name = "tripwire_speed"
        rows = []
        for network, checkpoint in (networks or {"demo": trained(work, 0)}).items():
            rows += speed(network, checkpoint, work, blocks=options.blocks, calls=options.calls)
        output = RESULTS / f"{name}.json"
        kept = json.loads(output.read_bytes())["rows"] if output.exists() else []
        made = {row["network"] for row in rows}
        record |= {
            "command": "python benchmarks/bench_tripwire.py speed --work FOLDER [--network NAME=CKPT --calls N]",
            "every": EVERY,
            "blocks": options.blocks,
            "rows": [*(row for row in kept if row["network"] not in made), *rows],
        }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(record) if options.which == "attacks" else speed_table(record))


if __name__ == "__main__":
    main()
