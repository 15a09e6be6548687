"""All training methods on equal terms: accuracy, AutoAttack, bytes, latency and what training cost.

    .venv/bin/python benchmarks/bench_methods.py digits --work FOLDER
    .venv/bin/python benchmarks/bench_methods.py cifar --work FOLDER --data folder:DIR --init FILE

Every row is trained by smart-train, exported by smart-export, measured by smart-eval (AutoAttack on each path) and by
smart-bench, each a process of its own whose result stays in FOLDER: what is there already is not made again, so a run
goes on where it was interrupted. `digits`: the demo's network from scratch, equal epochs. `cifar`: a ResNet-18 from the
weights in --init, made for pixels in [0, 1]; equal cost of training, counted in forward passes; the networks of a pair
have half of it each. DIR holds CIFAR-10 as bench_cifar.py has it; figures are of every second test image, so that
options can be chosen by the others. Writes benchmarks/results/methods-digits.json or methods-cifar.json and prints the
table. Rows of other runs with the same settings stay in it, so a table can be made a few rows at a time (--rows NAME)
and on several machines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from kill_rule import AT_EQUAL_COST, verdict

from smart_common.children import python_command
from smart_common.files import replacing
from smart_runtime.bench.environment import read_environment
from smart_train import load_data
from smart_train.methods import METHODS, load_method

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "train": "smart_train.cli",
    "export": "smart_export.cli",
    "eval": "smart_eval.cli",
    "bench": "smart_runtime.bench.cli",
}
SUSPECT = 3  # smart-eval's status after a whole result of which a check is in doubt


@dataclass(frozen=True)
class Row:
    """One training, or two that are deployed together.

    Attributes:
        name: in the table.
        method: of smart-train.
        options: of smart-train beside those that all rows have.
        pair: the rows whose paths the bundle takes as clean and robust, in the place of a training of its own.
        share: of the training that other rows have.
    """

    name: str
    method: str = ""
    options: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    share: float = 1.0


MODES = ("gradual", "regrow", "static", "complementary", "shared", "shared-early")


def at_density(density: str, robust: str, share: float) -> list[Row]:
    """Return smart with each kind of masks, the sparse single networks, and two of those together.

    Args:
        density: of every path.
        robust: method of the pair's robust network.
        share: of a training that costs smart 0.6 of what two networks cost: what docs/evidence.md asks for.
    """
    kept = ("--density", density)
    rows = [Row(f"smart {mode} {density}", "smart", (*kept, "--masks", mode)) for mode in MODES]
    rows.append(Row(f"smart gradual {density} at 0.6 of the cost", "smart", (*kept, "--masks", "gradual"), share=share))
    singles = [Row(f"{name} {density}", name, (*kept, "--masks", "gradual")) for name in ("standard", robust)]
    return [*rows, *singles, Row(f"two networks {density}", pair=tuple(one.name for one in singles))]


DENSE = ("--density", "1")
ROWS = {
    "digits": [
        *(Row(f"{name} dense", name, DENSE) for name in ("standard", "pgd-at", "trades", "dual-bn")),
        # At this eps TRADES with its usual beta only learns to be unsure. With 7 attack steps standard and pgd-at cost
        # 3 + 17 forwards an image, smart 10.
        *at_density("0.5", "pgd-at", 1.2),
        Row("standard 0.5, less of it", "standard", share=0.5),
        Row("pgd-at 0.5, less of it", "pgd-at", share=0.5),
        Row(AT_EQUAL_COST, pair=("standard 0.5, less of it", "pgd-at 0.5, less of it")),
        # At 0.5 dual-bn is "smart shared".
        *(Row(f"{name} 0.5", name) for name in METHODS if name not in {"smart", "dual-bn", "standard", "pgd-at"}),
    ],
    "cifar": [
        *(
            Row(f"{name} dense", name, DENSE)
            for name in ("standard", "pgd-at", "trades", "dual-bn", "oat", "ar-at", "vfd")
        ),
        # TRADES learns little in so short a training: 0.305 clean and 0.140 under PGD-20 at density 0.5 (400 images).
        *at_density("0.5", "pgd-at", 0.6),
        *at_density("0.3125", "pgd-at", 0.6),
    ],
}


class Bench:
    """Makes rows, each step once: a result that lies in the folder is not made again.

    Args:
        rows: all of them.
        work: the folder.
        train: options of smart-train that all rows have.
        evaluate: options of smart-eval that all rows have.
        steps: of the attack trained against.
        epochs: of a whole training; None where ``forwards`` says what it costs.
        forwards: of a whole training, in passes of the dense network.
        images: training images at most.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        work: Path,
        *,
        train: Sequence[str],
        evaluate: Sequence[str],
        steps: int,
        epochs: int | None = None,
        forwards: int = 0,
        images: int = 0,
    ) -> None:
        self.rows = {row.name: row for row in rows}
        self._work, self._train, self._evaluate = work, train, evaluate
        self._steps, self._epochs, self._forwards, self._images = steps, epochs, forwards, images
        self._halved = {name for row in rows for name in row.pair}

    def place(self, row: Row, seed: int) -> Path:
        """Return the folder of a row and seed."""
        found = self._work / f"{row.name.replace(',', '').replace(' ', '-')}-seed{seed}"
        found.mkdir(parents=True, exist_ok=True)
        return found

    def run(self, place: Path, command: str, *arguments: str) -> dict[str, Any]:
        """Return the --json of one of our commands; exit where it fails."""
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
            if done.returncode and (command, done.returncode) != ("eval", SUSPECT):
                sys.exit(f"error: smart-{command} ended with status {done.returncode}; see {place / command}.log")
            with replacing(kept) as file:
                file.write(done.stdout)
        found: dict[str, Any] = json.loads(kept.read_bytes())
        return found

    def budget(self, row: Row) -> tuple[int, int, float]:
        """Return the epochs of a training, its images (0 for all), and the forward passes for each image of the set."""
        method = load_method(row.method)
        forwards = method.forwards(1 if method.attack else self._steps)
        if self._epochs is not None:
            epochs = round(row.share * self._epochs)
            return epochs, 0, forwards * epochs
        seen = int(row.share * (0.5 if row.name in self._halved else 1.0) * self._forwards / forwards)
        epochs = -(-seen // self._images)
        return epochs, seen // epochs, forwards * seen / self._images

    def trained(self, row: Row, seed: int) -> tuple[Path, dict[str, Any], dict[str, Any]]:
        """Return the checkpoint of a row and what smart-train and smart-eval say of it."""
        place, method = self.place(row, seed), load_method(row.method)
        checkpoint = place / "ckpt.pt"
        attack = ["--attack", method.attack] if method.attack else ["--steps", str(self._steps)]
        teacher = ["--teacher", str(self.trained(self.rows["standard dense"], seed)[0])] if method.needs_teacher else []
        going_on = ["--resume"] if (place / "ckpt.last.pt").exists() else []
        options = [*self._train, "--method", row.method, "--seed", str(seed), *row.options, *attack, *teacher]
        epochs, images, _ = self.budget(row)
        options += ["--epochs", str(epochs), *(["--train-images", str(images)] if images else [])]
        said = self.run(place, "train", *options, "-o", str(checkpoint), *going_on)
        kept = str(place / "eval.jsonl")
        measured = self.run(place, "eval", str(checkpoint), *self._evaluate, "-o", kept, "--resume")
        return checkpoint, said, measured

    def made(self, row: Row, seed: int) -> dict[str, Any]:
        """Return what is kept of a row."""
        place, bundle = self.place(row, seed), self.place(row, seed) / "bundle"
        parts = [self.rows[name] for name in row.pair] or [row]
        each = [self.trained(part, seed) for part in parts]
        sources = [str(checkpoint) for checkpoint, _, _ in each]
        if row.pair:
            sources = [
                word for name, source in zip(("--clean", "--robust"), sources, strict=True) for word in (name, source)
            ]
        exported = self.run(place, "export", *sources, "--target", "cpu", "-o", str(bundle), "--force")
        timed = {one["name"]: one for one in self.run(place, "bench", str(bundle), "--blocks", "15")["rows"]}
        found = [figures for _, _, measured in each for figures in measured["models"][0]["paths"].values()]
        # A pair's networks have one path each, whatever it is called there.
        measured = dict(zip(exported["paths"], found, strict=True)) if row.pair else each[0][2]["models"][0]["paths"]
        masks = exported["masks"]
        return {
            "name": row.name,
            "caveat": "" if row.pair else load_method(row.method).caveat,
            "seed": seed,
            "train_seconds": sum(said["seconds"] for _, said, _ in each),
            "images_per_second": None if row.pair else each[0][1]["images_per_second"],
            "cost": sum(self.budget(part)[2] for part in parts),
            "bytes": sum(graph["bytes"] for graph in exported["paths"].values()),
            "stored_parameters": sum(measured["models"][0]["cost"]["stored_parameters"] for _, _, measured in each),
            "union_density": exported["union_density"],
            "overlap": None if masks is None or masks["overlap"] is None else masks["overlap"]["overlap"],
            "chance": None if masks is None or masks["overlap"] is None else masks["overlap"]["chance"],
            "paths": {
                name: {
                    "macs": graph["macs"],
                    "speedup": timed[name]["speedup"],
                    "clean": measured[name]["clean_accuracy"],
                    "clean_interval": measured[name]["clean_interval"],
                    "parameters": graph["parameters"],
                    "attacks": {
                        attack: {"accuracy": found["accuracy"], "interval": found["interval"]}
                        for attack, found in measured[name]["attacks"].items()
                    },
                }
                for name, graph in exported["paths"].items()
            },
        }


def table(record: dict[str, Any]) -> str:
    """Return the rows as Markdown: means over the seeds, with the lowest and the highest where there are several."""
    attacks = list(next(iter(record["rows"][0]["paths"].values()))["attacks"])
    columns = ["row", "path", "MMAC", "clean", *attacks, "overlap (chance)", "speed-up", "kB, all paths"]
    columns += ["training s", "seeds"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name in dict.fromkeys(one["name"] for one in record["rows"]):
        runs = [one for one in record["rows"] if one["name"] == name]
        first, title = runs[0], f"{name} ({runs[0]['caveat']})" if runs[0]["caveat"] else name
        overlap = (
            "-"
            if first["overlap"] is None
            else "{:.2f} ({:.2f})".format(*(fmean(one[key] for one in runs) for key in ("overlap", "chance")))
        )
        for path, figures in first["paths"].items():
            each = [one["paths"][path] for one in runs]
            accuracies = [[one["clean"] for one in each]]
            accuracies += [[one["attacks"][attack]["accuracy"] for one in each] for attack in attacks]
            cells = [title, path, f"{figures['macs'] / 1e6:.2f}", *map(spread, accuracies), overlap]
            cells += [
                f"{fmean(one['speedup'] for one in each):.2f}x",
                f"{fmean(one['bytes'] for one in runs) / 1e3:.0f}",
            ]
            cells += [f"{fmean(one['train_seconds'] for one in runs):.0f}", str(len(runs))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return the mean, with the lowest and the highest where there are several."""
    ends = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{ends}"


def with_earlier(
    rows: Sequence[dict[str, Any]], output: Path, settings: dict[str, Any], *, order: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return ``rows`` with those that ``output`` has beside them from runs of the same settings, in their order."""
    earlier = json.loads(output.read_bytes()) if output.exists() else {"rows": []}
    same = all(earlier.get(name) == value for name, value in settings.items())
    found = {(one["name"], one["seed"]): one for one in [*(earlier["rows"] if same else []), *rows]}
    names = [row.name for row in order]
    return [found[key] for key in sorted(found, key=lambda key: (names.index(key[0]), key[1]))]


def second_half(data: str, work: Path) -> str:
    """Return data whose test images are every second one of ``data``'s."""
    place = work / "data.npz"
    if not place.exists():
        found = load_data(data)
        parts: dict[str, Any] = {
            f"{name}_{kind}": np.concatenate([getattr(split, kind) for split in splits])
            for name, splits in (("train", (found.train, found.validation)), ("test", (found.test,)))
            for kind in ("images", "labels")
        }
        parts |= {name: array[1::2] for name, array in parts.items() if name.startswith("test")}
        with replacing(place) as file:
            np.savez(file, **parts, class_names=np.array(found.class_names))
    return f"npz:{place}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=list(ROWS))
    parser.add_argument("--work", type=Path, required=True, help="where results lie that are not to be made again")
    parser.add_argument("--data", help="of cifar: folder:DIR")
    parser.add_argument("--init", type=Path, help="of cifar: the weights to start from")
    parser.add_argument("--seeds", type=int, help="how many: 3 for digits, 1 for cifar unless told otherwise")
    parser.add_argument("--rows", nargs="*", help="these alone, by their names")
    parser.add_argument("--epochs", type=int, default=15, help="of digits")
    parser.add_argument("--forwards", type=int, default=240_000, help="of each training of cifar")
    parser.add_argument("--examples", type=int, default=400, help="of cifar: test images under attack")
    parser.add_argument("--attack", default="clean,pgd20x1,autoattack", help="as smart-eval takes it")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time, a thread each")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in ROWS[options.which] if not options.rows or row.name in options.rows]
    evaluate = ["--attack", options.attack, "--no-threats"]
    if options.which == "digits":
        recipe = ROOT / "recipes/digits.toml"
        train = ["--recipe", str(recipe)]
        bench = Bench(ROWS["digits"], options.work, train=train, evaluate=evaluate, steps=7, epochs=options.epochs)
    else:
        if options.data is None or options.init is None:
            sys.exit("error: cifar needs --data folder:DIR and --init FILE")
        data = second_half(options.data, options.work)
        train = [
            "--data",
            data,
            "--model",
            "resnet18",
            "--init",
            str(options.init),
            "--normalize",
            "none",
            "--precision",
            "bf16-mixed",
        ]
        train += ["--flip", "--crop-pad", "4", "--lr", "0.02", "--batch-size", "128", "--test-images", "200"]
        evaluate += ["--data", data, "--examples", str(options.examples)]
        bench = Bench(
            ROWS["cifar"], options.work, train=train, evaluate=evaluate, steps=3, forwards=options.forwards, images=8000
        )
    environment = read_environment(packages=("torch",))
    seeds = range(options.seeds or {"digits": 3, "cifar": 1}[options.which])
    wanted = [(row, seed) for seed in seeds for row in chosen]
    # A row that others learn from, or take their paths from, is made before them and not twice at a time.
    first = [(row, seed) for row, seed in wanted if row.name in bench._halved | {"standard dense"}]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda one: bench.trained(*one), first))
        rows = list(pool.map(lambda one: bench.made(*one), wanted))
    settings = {"epochs": options.epochs} if options.which == "digits" else {"forwards": options.forwards}
    settings |= {"attack": options.attack, **({} if options.which == "digits" else {"examples": options.examples})}
    words = " ".join(f"--{name} {value}" for name, value in settings.items())
    given = " --data folder:DIR --init FILE" if options.which == "cifar" else ""
    output = options.output or ROOT / f"benchmarks/results/methods-{options.which}.json"
    record = {
        "command": f"python benchmarks/bench_methods.py {options.which} --work FOLDER{given} {words}",
        **settings,
        "threads": 1,
        "environment": asdict(environment),
        "rows": with_earlier(rows, output, settings, order=list(ROWS[options.which])),
    }
    output.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(record), verdict(record), sep="\n\n")


if __name__ == "__main__":
    main()
