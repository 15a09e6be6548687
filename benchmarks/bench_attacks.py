"""What PGD-20 and stronger attacks leave of a checkpoint on the digits' test split, and what attacking it costs.

    .venv/bin/python benchmarks/bench_attacks.py demo-out/ckpt.pt

PGD-20, PGD-50 with 5 restarts and AutoAttack's standard version (pyautoattack, extra eval) as smart-eval makes them,
white-box on each path, at the checkpoint's eps. An image counts if it is classified correctly before and after.

Time: smart-eval's PGD takes turns with a plain loop over equal batches, which attacks every image in every step of
every restart by loss.backward(), as training code has it. smart-eval leaves alone what it has broken, computes the
gradient of the input only, and applies the masks once; a second loop does the latter two but attacks every image, so
that one sees what leaving alone gives. The goal: both paths together in at most half of the plain loop's time. Takes
about ten minutes; writes benchmarks/results/attacks.json with the environment and ends with status 1 if the goal is
missed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from outcome import finish
from torch import Tensor
from torch.nn.functional import cross_entropy

from smart_eval.attacks.pgd import Pgd
from smart_eval.attacks.table import parse_attacks
from smart_eval.measure import Run, measure
from smart_runtime.bench.environment import read_environment
from smart_train import Attack, load_checkpoint
from smart_train.accuracy import Accuracy, classified_rightly, to_tensor
from smart_train.chunks import CHUNK
from smart_train.data.images import Split
from smart_train.data.load import load_data
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import PathNetwork, SmartNetwork

RESULT = Path(__file__).resolve().parent / "results/attacks.json"
ATTACKS = "pgd20x1,pgd50x5,autoattack"
SEED, ROUNDS, GOAL = 0, 5, 0.5


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
    lines = [
        "| both paths | plain loop | input's gradient only | smart-eval | of the plain loop's time | of the second's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['attack']} | {row['seconds']['plain']:.2f} s | {row['seconds']['input_only']:.2f} s "
        f"| {row['seconds']['smart_eval']:.2f} s | {_ratio(row['of_plain'])} | {_ratio(row['of_input_only'])} |"
        for row in record["times"]
    ]
    return "\n".join(lines)


def _ratio(row: dict[str, float]) -> str:
    return f"{row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


Perturb = Callable[[PathNetwork, Tensor, Tensor, torch.Generator], Tensor]


def every_image(net: SmartNetwork, split: Split, *, restarts: int, perturb: Perturb) -> None:
    """Attack every image of every batch in every restart, and see what each path gets right."""
    for path in net.path_names:
        model, generator = net.path(path), torch.Generator().manual_seed(SEED)
        for start in range(0, len(split), CHUNK):
            images = to_tensor(torch.from_numpy(split.images[start : start + CHUNK]))
            labels = torch.from_numpy(split.labels[start : start + CHUNK])
            right = classified_rightly(model, images, labels)
            for _ in range(restarts):
                adversarial = perturb(model, images, labels, generator)
                right &= classified_rightly(model, adversarial, labels)


def by_backward(attack: Attack) -> Perturb:
    """Return one start of PGD as training code has it: loss.backward(), which computes the weights' gradients too."""

    def perturb(model: PathNetwork, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.empty_like(images).uniform_(-attack.eps, attack.eps, generator=generator)
        adversarial = (images + noise).clamp(0, 1)
        for _ in range(attack.steps):
            adversarial.requires_grad_()
            model.zero_grad()
            cross_entropy(model(adversarial), labels).backward()  # type: ignore[no-untyped-call]
            assert adversarial.grad is not None
            moved = adversarial.detach() + attack.step * adversarial.grad.sign()
            adversarial = (images + (moved - images).clamp(-attack.eps, attack.eps)).clamp(0, 1)
        return adversarial

    return perturb


def for_the_input(attack: Attack) -> Perturb:
    """Return one start of PGD for the gradient of the input only, the masks applied once."""
    once = replace(attack, restarts=1)

    def perturb(model: PathNetwork, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        with attack_mode(model):
            return once.run(model, images, labels, generator=generator)

    return perturb


def compare(net: SmartNetwork, split: Split, attack: Attack) -> dict[str, Any]:
    """Return how long all ways take, in turns."""
    ways: dict[str, Callable[[], object]] = {
        "plain": partial(every_image, net, split, restarts=attack.restarts, perturb=by_backward(attack)),
        "input_only": partial(every_image, net, split, restarts=attack.restarts, perturb=for_the_input(attack)),
        "smart_eval": lambda: measure(net, split, attacks=[Pgd(attack)], run=Run(seed=SEED)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    net.eval()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {
        "attack": attack.label,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "of_plain": _spread(seconds["smart_eval"], seconds["plain"]),
        "of_input_only": _spread(seconds["smart_eval"], seconds["input_only"]),
    }


def _spread(ours: list[float], theirs: list[float]) -> dict[str, float]:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    checkpoint = load_checkpoint(parser.parse_args().checkpoint)
    environment = read_environment(packages=("torch", "pyautoattack"))
    split, eps, net = load_data("digits").test, checkpoint.samples.eps, checkpoint.net
    times = [compare(net, split, Attack(eps=eps, steps=steps, restarts=n)) for steps, n in ((20, 1), (50, 5))]
    attacks = parse_attacks(ATTACKS, eps=eps, steps=1, restarts=1, step_size=None, classes=10)
    right = measure(net, split, attacks=attacks, run=Run(seed=SEED))
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
                "value": row["of_plain"]["median"],
                "limit": GOAL,
                "reached": row["of_plain"]["median"] <= GOAL,
            }
            for row in times
        ],
        "threads": torch.get_num_threads(),
        "environment": asdict(environment),
    }
    finish(record, output=RESULT, lines=[table(record), "", time_table(record)])


if __name__ == "__main__":
    main()
