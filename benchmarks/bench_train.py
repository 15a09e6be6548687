"""Training throughput: SMART's trainer against a bare loop that does the same passes on the same network.

    .venv/bin/python benchmarks/bench_train.py

The bare loop is what one would write by hand for one plain network: half of a batch clean, the other half attacked by
PGD in eval mode and then trained on, two forward passes, one backward, one SGD step; no masks, one set of batch norms,
no checks, no progress. Both run in one process in interleaved blocks of steps on the same uint8 images; the figure is
the ratio of the medians of the blocks with the 95% interval of a bootstrap over rounds. Each network runs three times:
with its masks still dense, as a training begins, closing, and frozen at their target, as it ends. Writes
benchmarks/results/train.json.
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
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from outcome import finish
from torch import Tensor, nn

from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import speed_up
from smart_train import Attack, Structure
from smart_train.architectures.build import build_network
from smart_train.data.images import make_image_set
from smart_train.data.source import Arrays
from smart_train.training.config import TrainConfig
from smart_train.training.loop import Trainer

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/train.json"
GOAL = 0.9  # of the bare loop's images per second
# Network, width, side, batch: the demo's, and small ones at CIFAR's size.
CASES = (("resnet8", 48, 8, 128), ("resnet20", 16, 32, 64), ("resnet34", 16, 32, 64))
# When in a training, as a fraction of its steps: masks begin to close at 0.15 and are at their target at 0.5.
PHASES = {"dense": 0.0, "closing": 0.3, "frozen": 0.5}
EPS, STEPS, STEP_SIZE = 8 / 255, 7, 2 / 255


class BareLoop:
    """The loop one would write by hand; it takes nothing from smart_train but the plain network."""

    def __init__(self, network: nn.Module, *, mean: Tensor, std: Tensor) -> None:
        self.network = network
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def scores(self, images: Tensor) -> Tensor:
        """Return the scores of images in [0, 1]."""
        result: Tensor = self.network((images - self.mean) / self.std)
        return result

    def step(self, pixels: Tensor, labels: Tensor) -> None:
        """Do one optimiser step on uint8 (N, H, W, C)."""
        images = pixels.permute(0, 3, 1, 2).float().div_(255).contiguous()
        half = len(images) // 2
        clean, attacked = images[:half], images[half:]
        self.network.eval()
        adversarial = (attacked + torch.empty_like(attacked).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            adversarial.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(self.scores(adversarial), labels[half:]), adversarial)
            adversarial = adversarial.detach() + STEP_SIZE * gradient.sign()
            adversarial = torch.min(torch.max(adversarial, attacked - EPS), attacked + EPS).clamp(0, 1)
        self.network.train()
        loss = 0.5 * F.cross_entropy(self.scores(clean), labels[:half])
        loss = loss + 0.5 * F.cross_entropy(self.scores(adversarial), labels[half:])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def measure(
    model: str, *, width: int, side: int, batch: int, phase: str, rounds: int, steps: int, device: str
) -> dict[str, Any]:
    """Time ``rounds`` interleaved blocks of ``steps`` optimiser steps of both loops; return the row of the table."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20 * batch, side, side, 3), dtype=np.uint8)
    labels = np.arange(20 * batch) % 10
    data = make_image_set(Arrays(pixels, labels, pixels[:batch], labels[:batch]), kind="npz", where="made up")
    config = TrainConfig(
        model=model,
        model_arguments={"width": width},
        structure=Structure(density=0.5, align=4),
        attack=Attack(eps=EPS, steps=STEPS, step_size=STEP_SIZE),
        epochs=100,
        batch_size=batch,
        device=device,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, data, output=Path(folder) / "ckpt.pt")
    on_device = next(trainer.net.parameters()).device
    number = max(1, round(PHASES[phase] * trainer.total_steps))
    plain = build_network(model, num_classes=10, in_channels=3, arguments={"width": width}, generator_seed=0)
    mean, std = data.mean_std()
    bare = BareLoop(
        plain.to(on_device), mean=torch.tensor(mean, device=on_device), std=torch.tensor(std, device=on_device)
    )
    images = torch.from_numpy(data.train.images[:batch]).to(on_device)
    targets = torch.from_numpy(data.train.labels[:batch]).to(on_device)

    def smart() -> None:
        nonlocal number
        trainer.step(trainer.batches.batch(images, targets, number=number))
        number += 1

    loops = {"bare": lambda: bare.step(images, targets), "smart": smart}
    times: dict[str, list[Any]] = {name: [] for name in loops}
    for step in loops.values():  # allocations, and the step that freezes the masks
        step()
        step()
    for _ in range(rounds):
        for name in rng.permutation(list(loops)):
            if on_device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(steps):
                loops[name]()
            if on_device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(np.array([1000 * (time.perf_counter() - started) / steps]))
    ratio = speed_up(times["bare"], times["smart"], rng=rng)
    return {
        "model": model,
        "width": width,
        "input": [3, side, side],
        "batch": batch,
        "masks": phase,
        "device": str(on_device),
        "rounds": rounds,
        "steps": steps,
        **{f"{name}_images_per_second": 1000 * batch / float(np.median(times[name])) for name in loops},
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| network | masks | bare loop | smart-train | ratio (95% interval) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        side = row["input"][1]
        lines.append(
            f"| {row['model']}, width {row['width']}, 3x{side}x{side}, batch {row['batch']} | {row['masks']} "
            f"| {row['bare_images_per_second']:.0f} images/s | {row['smart_images_per_second']:.0f} images/s "
            f"| {row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark; exit with status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps a block")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="of torch: two on shared cores wait for each other")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    environment = read_environment(packages=("torch", "lightning-fabric"))
    torch.set_num_threads(options.threads)
    rows = [
        measure(
            model,
            width=width,
            side=side,
            batch=batch,
            phase=phase,
            rounds=options.rounds,
            steps=options.steps,
            device=options.device,
        )
        for model, width, side, batch in CASES
        for phase in PHASES
    ]
    goals = [
        {
            "goal": f"{row['model']}, masks {row['masks']}: images/s at least {GOAL} of a bare loop's",
            "value": row["ratio"],
            "reached": row["ratio"] >= GOAL,
        }
        for row in rows
    ]
    found = {
        "command": f"python benchmarks/bench_train.py --rounds {options.rounds} --steps {options.steps} "
        f"--device {options.device} --threads {options.threads}",
        "environment": asdict(environment),
        "threads": options.threads,
        "goals": goals,
        "rows": rows,
    }
    finish(found, output=options.output, lines=[table(rows)])


if __name__ == "__main__":
    main()
