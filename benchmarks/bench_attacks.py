"""How much of a checkpoint's PGD-20 accuracy stronger attacks leave, on the digits' test split.

    .venv/bin/python benchmarks/bench_attacks.py demo-out/ckpt.pt

PGD-20, PGD-50 with 5 restarts and AutoAttack's standard version (pyautoattack, extra eval), white-box on each path, at
the checkpoint's eps. An image counts if it is classified correctly before and after. Takes some minutes; writes
benchmarks/results/attacks.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path

import torch
from pyautoattack import AutoAttack

from smart_train import Attack, load_checkpoint
from smart_train.data import load_data
from smart_train.evaluation.accuracy import accuracy, to_tensor

RESULT = Path(__file__).resolve().parent / "results/attacks.json"
SEED = 0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    checkpoint = load_checkpoint(parser.parse_args().checkpoint)
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
    versions = {name: metadata.version(name) for name in ("torch", "pyautoattack")}
    environment = {"machine": platform.machine(), "python": platform.python_version(), "versions": versions}
    record = {
        "command": "python benchmarks/bench_attacks.py demo-out/ckpt.pt",
        "training": {k: checkpoint.training[k] for k in ("model", "structure", "epochs", "learning_rate", "seed")},
        "eps": eps,
        "examples": len(split),
        "seed": SEED,
        "robust_accuracy": found,
        "environment": environment,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
