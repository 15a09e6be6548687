"""What PGD-20 and stronger attacks leave of a checkpoint on the digits' test split, and what attacking it costs.

    .venv/bin/python benchmarks/bench_attacks.py demo-out/ckpt.pt

PGD-20, PGD-50 with 5 restarts and AutoAttack's standard version (pyautoattack, extra eval) as smart-eval makes them,
white-box on each path, at the checkpoint's eps. An image counts if it is classified correctly before and after.

Time: smart-eval's PGD, which leaves alone what it has broken, takes turns with a plain loop, which attacks every image
of each batch in every step of every restart; both for the gradient of the input only. The goal: both paths together in
at most half of the plain loop's time. Takes some minutes; writes benchmarks/results/attacks.json with the environment
and ends with status 1 if the goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from outcome import finish

from smart_runtime.bench.environment import read_environment
from smart_train import Attack, load_checkpoint
from smart_train.data import load_data
from smart_train.data.images import Split
from smart_train.evaluation.accuracy import Accuracy, classified_rightly, to_tensor
from smart_train.evaluation.measure import CHUNK, measure
from smart_train.evaluation.named import Pgd, parse_attacks
from smart_train.evaluation.records import Records
from smart_train.methods.step import fixed
from smart_train.network import SmartNetwork

RESULT = Path(__file__).resolve().parent / "results/attacks.json"
ATTACKS = "pgd20x1,pgd50x5,autoattack"
SEED, ROUNDS, GOAL = 0, 3, 0.5


def table(record: dict[str, Any]) -> str:
    """Return what each attack leaves as Markdown."""
    attacks = {"pgd20x1": "PGD-20", "pgd50x5": "PGD-50, 5 restarts", "autoattack": "AutoAttack"}
    lines = [
        f"| seed {record['training']['seed']} | {' | '.join(attacks.values())} |",
        f"|{' --- |' * (1 + len(attacks))}",
    ]
    for path, found in record["robust_accuracy"].items():
        cells = (f"{found[name]['accuracy']:.3f} ({_interval(found[name]['interval'])})" for name in attacks)
        lines.append(f"| `{path}` path | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(ends: list[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def time_table(record: dict[str, Any]) -> str:
    """Return what attacking costs as Markdown."""
    lines = ["| both paths | plain loop | smart-eval | of the plain loop's time |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row['attack']} | {row['plain_s']:.2f} s | {row['ours_s']:.2f} s | {row['ratio']:.2f} "
        f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) |"
        for row in record["times"]
    ]
    return "\n".join(lines)


def plain(net: SmartNetwork, split: Split, attack: Attack) -> None:
    """Attack every image of every batch in every step of every restart, and see what each path gets right."""
    once = replace(attack, restarts=1)
    for path in net.path_names:
        model, generator = net.path(path), torch.Generator().manual_seed(SEED)
        with fixed(model):
            for start in range(0, len(split), CHUNK):
                images = to_tensor(torch.from_numpy(split.images[start : start + CHUNK]))
                labels = torch.from_numpy(split.labels[start : start + CHUNK])
                right = classified_rightly(model, images, labels)
                for _ in range(attack.restarts):
                    adversarial = once.perturb(model, images, labels, generator=generator)
                    right &= classified_rightly(model, adversarial, labels)


def compare(net: SmartNetwork, split: Split, attack: Attack) -> dict[str, Any]:
    """Return how long both ways take, in turns."""
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        plain(net, split, attack)
        between = time.perf_counter()
        measure(net, split, attacks=[Pgd(attack)], seed=SEED, records=Records(), about={})
        seconds["plain"].append(between - started)
        seconds["ours"].append(time.perf_counter() - between)
    ratios = [ours / theirs for ours, theirs in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {
        "attack": attack.label,
        "plain_s": statistics.median(seconds["plain"]),
        "ours_s": statistics.median(seconds["ours"]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    checkpoint = load_checkpoint(parser.parse_args().checkpoint)
    environment = read_environment(packages=("torch", "pyautoattack"))
    split, eps, net = load_data("digits").test, checkpoint.samples.eps, checkpoint.net
    times = [compare(net, split, Attack(eps=eps, steps=steps, restarts=n)) for steps, n in ((20, 1), (50, 5))]
    attacks = parse_attacks(ATTACKS, eps=eps, steps=1, restarts=1, step_size=None)
    right = measure(net, split, attacks=attacks, seed=SEED, records=Records(), about={})
    found = {
        path: {name: Accuracy(int(each.sum()), len(each)) for name, each in by_attack.items()}
        for path, by_attack in right.items()
    }
    record = {
        "command": "python benchmarks/bench_attacks.py demo-out/ckpt.pt",
        "training": {k: checkpoint.training[k] for k in ("model", "structure", "epochs", "learning_rate", "seed")},
        "eps": eps,
        "examples": len(split),
        "seed": SEED,
        "robust_accuracy": {
            path: {name: {"accuracy": one.value, "interval": list(one.interval)} for name, one in by_attack.items()}
            for path, by_attack in found.items()
        },
        "times": times,
        "goals": [
            {
                "goal": f"{row['attack']}: attacking both paths takes at most half of a plain loop's time",
                "value": row["ratio"],
                "limit": GOAL,
                "reached": row["ratio"] <= GOAL,
            }
            for row in times
        ],
        "threads": torch.get_num_threads(),
        "environment": asdict(environment),
    }
    finish(record, output=RESULT, lines=[table(record), "", time_table(record)])


if __name__ == "__main__":
    main()
