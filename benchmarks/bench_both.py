"""One call on both paths against two calls, and whether two threads would help.

    .venv/bin/python benchmarks/bench_both.py

Random weights and masks, density 0.5: ResNet-8 at 1x8x8, where all is overhead, and ResNet-34 at 3x32x32; uint8 images,
batch 1 and 8. What is compared takes turns, call by call in a random order, so that all see the same machine: `both`,
two calls under `using`, and the two paths side by side in a pool of two threads. Each with one thread a call, and the
first two also with two, since whoever has a second core can give it to the engine. Figures are medians over the rounds
with a 95% bootstrap interval. Writes benchmarks/results/both.json with the environment (a trial run: --output
ELSEWHERE), prints the table and ends with status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from outcome import finish

from smart_runtime import SmartModel
from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import Interval, interval, resampled

RESULT = Path(__file__).resolve().parent / "results/both.json"
NETWORKS = {"resnet8": (1, 8, 8), "resnet34": (3, 32, 32)}
DENSITY, ALIGN, SEED = 0.5, 8, 0
WARM_UP, RESAMPLES = 10, 2000
MOST = 1.05
"""What `both` may take of the time of two calls."""


def measured(ways: dict[str, Callable[[], object]], *, rounds: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return the milliseconds of each way, (rounds,), in turns."""
    names = list(ways)
    found = {name: np.empty(rounds) for name in names}
    for turn in range(-WARM_UP, rounds):
        for i in rng.permutation(len(names)):
            start = time.perf_counter()
            ways[names[i]]()
            if turn >= 0:
                found[names[i]][turn] = 1e3 * (time.perf_counter() - start)
    return found


def ratio(one: Any, other: Any, *, rng: np.random.Generator) -> Interval:
    """Return the median of ``one`` over that of ``other``."""

    def of(which: Any) -> float:
        return float(np.median(one[which]) / np.median(other[which]))

    drawn = resampled(of, rounds=len(one), resamples=RESAMPLES, rng=rng)
    return interval(of(np.arange(len(one))), drawn)


def compare(bundle: Path, *, shape: tuple[int, int, int], batch: int, rounds: int) -> dict[str, Any]:
    """Measure one network at one batch size."""
    rng = np.random.default_rng(SEED)
    channels, height, width = shape
    images = rng.integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    found: dict[str, Any] = {}
    with (
        SmartModel.load(bundle, threads=1) as one,
        SmartModel.load(bundle, threads=2) as two,
        ThreadPoolExecutor(2) as pool,
    ):

        def call(model: SmartModel, path: str) -> None:
            with model.using(path):
                model.run(images)

        def in_turn(model: SmartModel) -> None:
            for path in model.paths:
                call(model, path)

        def side_by_side() -> None:
            for done in [pool.submit(call, one, path) for path in one.paths]:
                done.result()

        times = measured(
            {
                "both": lambda: one.both(images),
                "two calls": lambda: in_turn(one),
                "side by side": side_by_side,
                "both, two threads": lambda: two.both(images),
                "two calls, two threads": lambda: in_turn(two),
            },
            rounds=rounds,
            rng=rng,
        )
    found["median_ms"] = {name: float(np.median(each)) for name, each in times.items()}
    found["both_over_two_calls"] = asdict(ratio(times["both"], times["two calls"], rng=rng))
    found["both_over_two_calls_two_threads"] = asdict(
        ratio(times["both, two threads"], times["two calls, two threads"], rng=rng)
    )
    found["side_by_side_over_both"] = asdict(ratio(times["side by side"], times["both"], rng=rng))
    found["side_by_side_over_both_two_threads"] = asdict(
        ratio(times["side by side"], times["both, two threads"], rng=rng)
    )
    return found


def main() -> None:
    """Measure all, write the file and end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    from synthetic import synthetic_bundle  # noqa: PLC0415  # torch, which --help does not wait for

    rows, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        for model, shape in NETWORKS.items():
            bundle = synthetic_bundle(
                Path(folder) / model, model=model, input_shape=shape, density=DENSITY, align=ALIGN, seed=SEED
            )
            for batch in (1, 8):
                found = compare(bundle, shape=shape, batch=batch, rounds=options.rounds)
                rows.append({"model": model, "input": list(shape), "batch": batch, **found})
                saved = found["both_over_two_calls"]
                lines.append(
                    f"{model} batch {batch}: both / two calls {saved['value']:.3f} "
                    f"[{saved['low']:.3f}, {saved['high']:.3f}], side by side / both "
                    f"{found['side_by_side_over_both']['value']:.3f}, against two threads "
                    f"{found['side_by_side_over_both_two_threads']['value']:.3f}"
                )
    worst = max(row["both_over_two_calls"]["value"] for row in rows)
    goal = {"goal": f"both takes at most {MOST} of two calls", "value": worst, "reached": worst <= MOST}
    record = {
        "command": f"python benchmarks/bench_both.py --rounds {options.rounds}",
        "environment": read_environment(),
        "load_average": list(os.getloadavg()),
        "rows": rows,
        "goals": [goal],
    }
    finish(record, output=options.output, lines=lines)


if __name__ == "__main__":
    main()
