"""What a training step of every method costs, against what its count of forward passes says.

    .venv/bin/python benchmarks/bench_method_costs.py

One trainer a method, all in one process on the same images, in interleaved blocks of steps: ResNet-20 of width 16 at
3x32x32, batch 64, PGD of 10 steps for those that attack so, every path dense. The figure is the time of a step over
that of pgd-at, beside the ratio of their `Method.forwards`; the goal is that none is more than 20% slower than that
says. Writes benchmarks/results/method_costs.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import finish

from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import speed_up
from smart_train import Attack, Structure
from smart_train.data.images import ImageSet, make_image_set
from smart_train.data.source import Arrays
from smart_train.methods import METHODS, load_method
from smart_train.training.config import TrainConfig
from smart_train.training.loop import Trainer

RESULT = Path(__file__).resolve().parent / "results/method_costs.json"
BASE = "pgd-at"
GOAL = 1.2
EPS, STEPS, SIDE, BATCH = 8 / 255, 10, 32, 64


def random_images() -> ImageSet:
    """Return random images in ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH * 6, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(len(images)) % 10
    return make_image_set(Arrays(images, labels, images[:20], labels[:20]), kind="npz", where="random images")


def trainer_of(name: str, data: ImageSet, folder: Path) -> Trainer:
    """Return a trainer by the method ``name``."""
    method = load_method(name)
    attack = Attack(name=method.attack or "pgd", eps=EPS, steps=1 if method.attack else STEPS)
    config = TrainConfig(
        model="resnet20",
        model_arguments={"width": 16},
        structure=Structure(density=1.0, align=1),
        method=name,
        attack=attack,
        epochs=100,
        batch_size=BATCH,
        device="cpu",
    )
    teacher = folder / "teacher.pt" if method.needs_teacher else None
    return Trainer(config, data, output=folder / f"{name}.pt", teacher=teacher)


def measure(*, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time every method's step in interleaved blocks."""
    data, rng = random_images(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = TrainConfig(
            model="resnet20",
            model_arguments={"width": 16},
            method="standard",
            structure=Structure(density=1.0, align=1),
            epochs=1,
            batch_size=BATCH,
            device="cpu",
        )
        Trainer(config, data, output=folder / "teacher.pt").run()
        trainers = {name: trainer_of(name, data, folder) for name in METHODS}
        batches = {}
        for name, trainer in trainers.items():
            last = trainer.config.epochs
            trainer._training.epoch_start(last, lambda images, trainer=trainer: trainer.batches.sample(images, epoch=1))
            batches[name] = list(trainer.batches.epoch(last))
        times: dict[str, list[Any]] = {name: [] for name in trainers}
        for round_number in range(rounds + 1):
            for name in rng.permutation(list(trainers)):
                started = time.perf_counter()
                for i in range(steps):
                    trainers[name].step(batches[name][i % len(batches[name])])
                if round_number:  # the first is for allocations
                    times[name].append(np.array([1000 * (time.perf_counter() - started) / steps]))
    counted = {name: load_method(name).forwards(1 if load_method(name).attack else STEPS) for name in METHODS}
    rows = []
    for name in METHODS:
        ratio = speed_up(times[name], times[BASE], rng=rng)
        rows.append(
            {
                "method": name,
                "forwards": counted[name],
                "ms_a_step": float(np.median(times[name])),
                "ratio": ratio.value,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "predicted": counted[name] / counted[BASE],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| method | forwards an image | predicted, of pgd-at | measured (95% interval) | measured / predicted |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['method']} | {row['forwards']:.1f} | {row['predicted']:.2f} "
        f"| {row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) "
        f"| {row['ratio'] / row['predicted']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark; exit with status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps a block")
    parser.add_argument("--threads", type=int, default=1, help="of torch: two on shared cores wait for each other")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    environment = read_environment(packages=("torch", "lightning-fabric"))
    torch.set_num_threads(options.threads)
    rows = measure(rounds=options.rounds, steps=options.steps)
    goals = [
        {
            "goal": f"{row['method']}: a step takes at most 1.2 times what its forwards predict from pgd-at",
            "value": row["ratio"] / row["predicted"],
            "reached": row["ratio"] / row["predicted"] <= GOAL,
        }
        for row in rows
    ]
    record = {
        "command": "python benchmarks/bench_method_costs.py",
        "threads": options.threads,
        "goals": goals,
        "environment": asdict(environment),
        "rows": rows,
    }
    finish(record, output=options.output, lines=[table(rows)])


if __name__ == "__main__":
    main()
