"""How long smart-export takes as a process of its own, what memory it needs and where the time goes.

    .venv/bin/python benchmarks/bench_export.py

ResNet-34 at 3x32x32 with random weights and masks, density 0.5, 256 samples: both paths and the dense network, a path
verified on 768 images (the samples, clean and attacked, and 256 of noise). Wall time is from the start of the
process to its end, imports included; of three runs the median counts. Writes benchmarks/results/export.json with the
environment, prints the table and ends with status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from outcome import finish
from synthetic import synthetic_checkpoint

from smart_common.children import python_command
from smart_runtime.bench.environment import read_environment
from smart_train.checkpoint.format import save_checkpoint

RESULT = Path(__file__).resolve().parent / "results/export.json"
MAX_SECONDS, MAX_BYTES = 20.0, 2 * 10**9
MODEL, INPUT_SHAPE, DENSITY, ALIGN, SAMPLES = "resnet34", (3, 32, 32), 0.5, 8, 256
LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir")


def export(checkpoint: Path, output: Path) -> dict[str, Any]:
    """Export once in a fresh process; return what it took and what it said of itself."""
    command = python_command("smart_export.cli", str(checkpoint), "--target", "cpu", "--json", "-o", str(output))
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"smart-export ended with status {child.returncode}")
    found = json.loads(said)
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": found["peak_bytes"],
        "timings": found["timings"],
        "verified_on": {name: graph["verified_on"] for name, graph in _graphs(found).items()},
        "max_rel_diff": {name: graph["max_rel_diff"] for name, graph in _graphs(found).items()},
    }


def _graphs(found: dict[str, Any]) -> dict[str, Any]:
    return {**found["paths"], found["baseline"]["name"]: found["baseline"]}


def table(runs: list[dict[str, Any]]) -> str:
    """Return the median time of each phase as a Markdown table."""
    lines = ["| phase | seconds |", "| --- | --- |"]
    for name in runs[0]["timings"]:
        seconds = statistics.median(run["timings"][name] for run in runs)
        lines.append(f"| {name} | {seconds:.2f} |")
    rest = statistics.median(run["seconds"] - sum(run["timings"].values()) for run in runs)
    lines.append(f"| all else, with leaving Python | {rest:.2f} |")
    lines.append(f"| **whole process** | **{statistics.median(run['seconds'] for run in runs):.2f}** |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark; exit with status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT, help="the file of results")
    options = parser.parse_args()
    environment = asdict(read_environment())
    environment["versions"] |= {name: metadata.version(name) for name in LIBRARIES}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "ckpt.pt"
        save_checkpoint(
            synthetic_checkpoint(model=MODEL, input_shape=INPUT_SHAPE, density=DENSITY, align=ALIGN, samples=SAMPLES),
            checkpoint,
        )
        runs = [export(checkpoint, Path(folder) / f"bundle{i}") for i in range(options.runs)]
    seconds = statistics.median(run["seconds"] for run in runs)
    peak = max(run["peak_bytes"] for run in runs)
    goals = [
        {
            "goal": f"exporting ResNet-34, verified, takes under {MAX_SECONDS:g} s",
            "value": seconds,
            "reached": seconds < MAX_SECONDS,
        },
        {
            "goal": f"exporting ResNet-34, verified, takes under {MAX_BYTES / 1e9:g} GB",
            "value": peak / 1e9,
            "reached": peak < MAX_BYTES,
        },
    ]
    found = {
        "command": f"python benchmarks/bench_export.py --runs {options.runs}",
        "method": "a fresh process each, wall time from start to end; the median of the runs counts for time, the "
        "largest for memory",
        "network": {"model": MODEL, "input_shape": INPUT_SHAPE, "density": DENSITY, "align": ALIGN, "samples": SAMPLES},
        "threads": environment["usable_cores"],  # verification runs on all of them
        "goals": goals,
        "runs": runs,
        "environment": environment,
    }
    finish(found, output=options.output, lines=[table(runs), f"\npeak memory {peak / 1e9:.2f} GB"])


if __name__ == "__main__":
    main()
