"""How large TensorRT-RTX's engine plans are, for one kind of card and for several, and how long they take to build.

    .venv/bin/python benchmarks/bench_rtx.py

ResNet-34 at 3x32x32 with random weights and masks, density 0.5, in fp32, fp16 and int8, exported for a desktop card;
plans of the robust path and of the dense network for batches of 1 to 64, built without a GPU. Of each: one for every
compute capability, one for all of them together, one with `SPARSE_WEIGHTS` and one without its weights (`STRIP_PLAN`).
For the last the library compiles on a GPU; where there is none, its refusal is the result, beside what of the whole
plan is not the weights file. Seconds are the median of three builds in one process, parsing included. Writes
benchmarks/results/rtx.json with the environment and prints the table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from outcome import finish
from synthetic import synthetic_checkpoint

from smart_devices import PRECISIONS, resolve_target
from smart_export.build import build_bundle
from smart_export.errors import ExportError
from smart_export.rtx import plan_from_onnx
from smart_runtime.bench.environment import read_environment
from smart_runtime.bundle.bundle import Bundle

RESULT = Path(__file__).resolve().parent / "results/rtx.json"
MODEL, INPUT_SHAPE, DENSITY, ALIGN, SAMPLES = "resnet34", (3, 32, 32), 0.5, 8, 32
TARGET, GRAPHS, CARDS = "desktop-gpu", ("robust", "dense"), ("8.6", "8.9", "12.0")
RUNS = 3


def timed(file: Path, **options: Any) -> dict[str, Any]:
    """Build a plan three times; return its size, which is the same each time, and the median of the seconds."""
    seconds, sizes = [], set()
    for _ in range(RUNS):
        started = time.perf_counter()
        sizes.add(plan_from_onnx(file, **options).nbytes)
        seconds.append(time.perf_counter() - started)
    (size,) = sizes
    return {"bytes": size, "seconds": statistics.median(seconds)}


def attempted(file: Path, **options: Any) -> dict[str, Any]:
    """Return what `timed` does, or why the library refuses."""
    try:
        return {**timed(file, **options), "refusal": None}
    except ExportError as error:
        return {"bytes": None, "seconds": None, "refusal": str(error)}


def measure(bundle: Path, precision: str) -> list[dict[str, Any]]:
    """Return a row for each graph."""
    manifest = Bundle.open(bundle).manifest
    rows = []
    for name in GRAPHS:
        graph = manifest.graph(name)
        file, inputs = bundle / graph.file, manifest.input
        together = timed(file, inputs=inputs, capabilities=CARDS)
        rows.append(
            {
                "network": MODEL,
                "graph": name,
                "precision": precision,
                "parameters": graph.parameters,
                "onnx_bytes": graph.bytes,
                "single": {card: timed(file, inputs=inputs, capabilities=[card]) for card in CARDS},
                "together": together,
                "sparse_weights": timed(file, inputs=inputs, capabilities=CARDS, sparse_weights=True),
                "weightless": attempted(file, inputs=inputs, capabilities=CARDS, weightless=True),
                "bytes_beside_weights": together["bytes"] - (bundle / graph.files[-1]).stat().st_size,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    columns = ["network", "graph", "precision", "ONNX MB", *(f"{card} MB" for card in CARDS), "all three MB", "s"]
    columns += ["not weights MB", "`STRIP_PLAN`"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        sizes = [row["onnx_bytes"], *(row["single"][card]["bytes"] for card in CARDS), row["together"]["bytes"]]
        stripped = row["weightless"]["bytes"]
        weightless = "refused" if stripped is None else f"{stripped / 1e6:.2f} MB"
        lines.append(
            f"| {row['network']} | {row['graph']} | {row['precision']} | "
            f"{' | '.join(f'{size / 1e6:.2f}' for size in sizes)} | {row['together']['seconds']:.2f} | "
            f"{row['bytes_beside_weights'] / 1e6:.2f} | {weightless} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT, help="the file of results")
    options = parser.parse_args()
    environment = asdict(read_environment())
    environment["versions"]["tensorrt-rtx-cu12"] = metadata.version("tensorrt-rtx-cu12")
    checkpoint = synthetic_checkpoint(
        model=MODEL, input_shape=INPUT_SHAPE, density=DENSITY, align=ALIGN, samples=SAMPLES
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            bundle = build_bundle(
                checkpoint,
                output=Path(folder) / precision,
                target=resolve_target(TARGET),
                precision=precision,
                max_drop=1,  # an untrained network has no accuracy to lose
                random_images=SAMPLES,
            ).bundle
            rows += measure(bundle, precision)
    refusals = sorted({row["weightless"]["refusal"] for row in rows} - {None})
    found = {
        "command": "python benchmarks/bench_rtx.py",
        "method": f"sizes of single builds, seconds the median of {RUNS} in one process; untrained weights",
        "network": {"model": MODEL, "input_shape": INPUT_SHAPE, "density": DENSITY, "align": ALIGN, "target": TARGET},
        "batch": {"min": 1, "opt": 8, "max": 64},
        "goals": [],
        "rows": rows,
        "environment": environment,
    }
    finish(found, output=options.output, lines=[table(rows), *refusals])


if __name__ == "__main__":
    main()
