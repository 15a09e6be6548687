"""How much of a checkpoint's PGD-20 accuracy stronger attacks leave, on the digits' test split.

    .venv/bin/python benchmarks/bench_attacks.py demo-out/ckpt.pt

PGD-20, PGD-50 with 5 restarts and AutoAttack's standard version (pyautoattack, extra eval), white-box on each path, at
the checkpoint's eps. An image counts if it is classified correctly before and after. Takes some minutes; writes
benchmarks/results/attacks.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack

from smart_runtime.bench.environment import read_environment
from smart_train import Attack, load_checkpoint
from smart_train.data import load_data
from smart_train.evaluation.accuracy import accuracy, to_tensor

RESULT = Path(__file__).resolve().parent / "results/attacks.json"
SEED = 0


def table(record: dict[str, Any]) -> str:
    """Return what each attack leaves as Markdown."""
    attacks = {"pgd20x1": "PGD-20", "pgd50x5": "PGD-50, 5 restarts", "autoattack": "AutoAttack"}
    lines = [
        f"| seed {record['training']['seed']} | {' | '.join(attacks.values())} |",
        f"|{' --- |' * (1 + len(attacks))}",
    ]
    for path, found in record["robust_accuracy"].items():
        lines.append(f"| `{path}` path | {' | '.join(f'{found[attack]:.3f}' for attack in attacks)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    checkpoint = load_checkpoint(parser.parse_args().checkpoint)
    environment = read_environment(packages=("torch", "pyautoattack"))
    split, eps = load_data("digits").test, checkpoint.samples.eps
    images, labels = to_tensor(torch.from_numpy(split.images)), torch.from_numpy(split.labels)
    found: dict[str, dict[str, float]] = {}
    for path in checkpoint.net.path_names:
        model = checkpoint.net.path(path).eval()
        found[path] = {}
        for steps, restarts in ((20, 1), (50, 5)):
            attack = Attack(eps=eps, steps=steps, restarts=restarts)
            generator = torch.Generator().manual_seed(SEED)
            found[path][attack.label] = accuracy(model, split, attack=attack, generator=generator).value
        standard = AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=SEED)
        adversarial, *_ = standard.run_standard_evaluation(images, labels, batch_size=len(labels))
        with torch.no_grad():
            right = (model(images).argmax(dim=1) == labels) & (model(adversarial).argmax(dim=1) == labels)
        found[path]["autoattack"] = float(right.float().mean())
        print(path, found[path], flush=True)
    record = {
        "command": "python benchmarks/bench_attacks.py demo-out/ckpt.pt",
        "training": {k: checkpoint.training[k] for k in ("model", "structure", "epochs", "learning_rate", "seed")},
        "eps": eps,
        "examples": len(split),
        "seed": SEED,
        "robust_accuracy": found,
        "threads": torch.get_num_threads(),
        "environment": asdict(environment),
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
