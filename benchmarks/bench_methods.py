"""All training methods on equal terms: accuracy, AutoAttack, bytes, latency and what training cost.

    .venv/bin/python benchmarks/bench_methods.py digits
    .venv/bin/python benchmarks/bench_methods.py cifar --data folder:DIR --init FILE

Every row is trained by smart-train, exported by smart-export, measured by smart-eval (AutoAttack on each path) and by
smart-bench, each a process of its own whose result stays in --work: what is there already is not done again, so a run
goes on where it was interrupted. `digits`: the demo's network from scratch, equal epochs, three seeds. `cifar`: a
ResNet-18 from the weights in --init, equal cost of training counted in forward passes; DIR as bench_cifar.py has it.
The test images are split in two halves: the first may be looked at while choosing options, figures are of the second.
Writes benchmarks/results/methods-digits.json or methods-cifar.json and prints the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_common.children import python_command
from smart_common.files import replacing
from smart_train.methods import METHODS, load_method

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
MODULES = {
    "train": "smart_train.cli",
    "export": "smart_export.cli",
    "eval": "smart_eval.cli",
    "bench": "smart_runtime.bench.cli",
}
TWO = "two networks"


@dataclass(frozen=True)
class Row:
    """One training, or two that are deployed together.

    Attributes:
        name: in the table.
        method: of smart-train.
        options: of smart-train beside those that all rows have.
        pair: the rows whose paths this bundle takes as clean and robust, instead of a training of its own.
    """

    name: str
    method: str = ""
    options: tuple[str, ...] = ()
    pair: tuple[str, str] | None = None


def mask_rows(density: str) -> list[Row]:
    """Return the rows of smart's masks, of the sparse single networks, and of two of those together."""
    half = ("--density", density)
    rows = [
        Row(f"smart, {mode}, {density}", "smart", (*half, "--masks", mode))
        for mode in ("gradual", "regrow", "static", "complementary", "shared", "shared-early")
    ]
    rows += [Row(f"{name}, {density}", name, (*half, "--masks", "static")) for name in ("standard", "trades")]
    pair = f"standard, {density}", f"trades, {density}"
    return [*rows, Row(f"{TWO}, {density}", pair=pair)]


DIGITS = [Row(name, name) for name in METHODS if name != "smart"] + mask_rows("0.5")
CIFAR_METHODS = ("standard", "pgd-at", "trades", "dual-bn", "oat", "ar-at", "vfd")
CIFAR = [Row(name, name) for name in CIFAR_METHODS] + mask_rows("0.5") + mask_rows("0.3125")


class Work:
    """Runs commands once: a result that lies in the folder is not made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def place(self, row: Row, seed: int) -> Path:
        """Return the folder of one row and seed."""
        name = row.name.replace(", ", "-").replace(" ", "-")
        place = self.folder / f"{name}-seed{seed}"
        place.mkdir(exist_ok=True)
        return place

    def run(self, place: Path, command: str, *arguments: str) -> dict[str, Any]:
        """Return the --json of one of our commands, from ``place`` where it is there; exit where it fails."""
        kept = place / f"{command}.json"
        if not kept.exists():
            print(f"{place.name}: smart-{command} {' '.join(arguments)}", file=sys.stderr, flush=True)
            with (place / f"{command}.log").open("w") as log:
                done = subprocess.run(
                    python_command(MODULES[command], *arguments, "--json"),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    check=False,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            # 3: a whole result, whose accuracies under attack a check of smart-eval suspects.
            if done.returncode not in ({0, 3} if command == "eval" else {0}):
                sys.exit(f"error: smart-{command} ended with status {done.returncode}; see {place / command}.log")
            with replacing(kept) as file:
                file.write(done.stdout)
        found: dict[str, Any] = json.loads(kept.read_bytes())
        return found


@dataclass(frozen=True)
class Terms:
    """What all rows share: options of smart-train, of smart-eval, and the budget of a training.

    Attributes:
        forwards: of a whole training, in passes of the dense network; None for equal epochs.
        steps: of the attack trained against.
        images: training images at most.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    epochs: int
    steps: int
    forwards: int | None = None
    images: int = 0


def cost(row: Row, terms: Terms) -> float:
    """Return what a training image costs in forward passes."""
    method = load_method(row.method)
    return method.forwards(1 if method.attack else terms.steps)


def budget(row: Row, terms: Terms, *, share: float) -> list[str]:
    """Return the epochs and images that a training has; the networks of a pair have half of the cost each."""
    if terms.forwards is None:
        return ["--epochs", str(terms.epochs)]
    seen = share * terms.forwards / cost(row, terms)  # images, each as often as it is seen
    epochs = max(1, -(-int(seen) // terms.images))
    return ["--epochs", str(epochs), "--train-images", str(min(terms.images, int(seen / epochs)))]


def make(work: Work, row: Row, rows: Sequence[Row], seed: int, terms: Terms) -> dict[str, Any]:
    """Train, export and measure a row, and return what is kept of it."""
    place = work.place(row, seed)
    by_name = {one.name: one for one in rows}
    if row.pair is None:
        method = load_method(row.method)
        halved = any(one.pair is not None and row.name in one.pair for one in rows)
        steps = [] if method.attack else ["--steps", str(terms.steps)]
        teacher = []
        if method.needs_teacher:
            make(work, by_name["standard"], rows, seed, terms)
            teacher = ["--teacher", str(work.place(by_name["standard"], seed) / "ckpt.pt")]
        checkpoint = place / "ckpt.pt"
        going = ["--resume"] if (place / "ckpt.last.pt").exists() else []
        trained = [
            work.run(
                place,
                "train",
                *(*terms.train, "--method", row.method, "--seed", str(seed), *row.options, *steps, *teacher),
                *(*budget(row, terms, share=0.5 if halved else 1.0), "-o", str(checkpoint), *going),
            )
        ]
        sources = [str(checkpoint)]
        evaluations = [
            work.run(place, "eval", str(checkpoint), *terms.evaluate, "-o", str(place / "eval.jsonl"), "--resume")
        ]
    else:
        parts = [by_name[name] for name in row.pair]
        for part in parts:
            make(work, part, rows, seed, terms)
        places = [work.place(part, seed) for part in parts]
        sources = [
            word
            for name, one in zip(("clean", "robust"), places, strict=True)
            for word in (f"--{name}", str(one / "ckpt.pt"))
        ]
        trained = [work.run(one, "train") for one in places]
        evaluations = [work.run(one, "eval") for one in places]
    bundle = place / "bundle"
    exported = work.run(place, "export", *sources, "--target", "cpu", "-o", str(bundle), "--force")
    bench = work.run(place, "bench", str(bundle))
    return {
        "name": row.name,
        "method": row.method,
        "seed": seed,
        "trained": trained,
        "evaluated": evaluations,
        "exported": exported,
        "bench": bench,
    }


def second_half(data: str, work: Work) -> str:
    """Return data whose test images are every second one of ``data``'s; the others are for choosing options."""
    place = work.folder / "data.npz"
    if not place.exists():
        found = load_data(data)
        train = [np.concatenate([getattr(split, part) for split in (found.train, found.validation)]) for part in PARTS]
        test = [getattr(found.test, part)[1::2] for part in PARTS]
        names = np.array(found.class_names)
        with replacing(place) as file:
            np.savez(
                file,
                train_images=train[0],
                train_labels=train[1],
                test_images=test[0],
                test_labels=test[1],
                class_names=names,
            )
    return f"npz:{place}"


def figures(made: dict[str, Any]) -> dict[str, Any]:
    """Return what the table shows of a row and seed, and its paths."""
    exported, bench = made["exported"], {row["name"]: row for row in made["bench"]["rows"]}
    measured: dict[str, Any] = {}
    for evaluation in made["evaluated"]:
        (model,) = evaluation["models"]
        measured.update(model["paths"])
    names = list(exported["paths"])
    # Of two networks each has one path, whatever its name is there; they come in the order of the bundle's.
    by_name = dict(zip(names, measured.values(), strict=True)) if len(made["evaluated"]) > 1 else measured
    return {"paths": {name: {"measured": by_name[name], "bench": bench[name]} for name in names}}
