"""What zeros that stay in the weights gain on a CPU, and how long it takes to find them in an ONNX file.

    .venv/bin/python benchmarks/bench_sparsity.py

Zeros: ResNet-34 at 3x32x32 with random weights, dense and with zeros in every layer that can have them: 2:4, half and
nine tenths of the weights anywhere; beside them the path that keeps half of each block interior's channels. All take
turns in one process, in blocks of calls, one thread, ONNX Runtime on the CPU.

Check: `smart-export check` of a ResNet-50 at 3x224x224, read and reported in this process (the median of several
times), which has to take under 2 s, and as a command of its own, with what importing costs.

Takes about 3 minutes; writes benchmarks/results/sparsity.json with the environment and prints the tables. --quick only
shows that it works, and writes nothing without --output. Status 1 if the goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from outcome import finish
from synthetic import synthetic_bundle

from smart_common.children import python_command
from smart_export.sparsity import FileSparsity, sparsity_of_onnx
from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import calls_per_block, interleave, random_batch, speed_up, summarise
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import DENSE
from smart_runtime.engines import REFERENCE_ENGINE, EngineOptions, create_engine

RESULT = Path(__file__).resolve().parent / "results/sparsity.json"
GOAL_SECONDS = 2.0
SEED, DENSITY, ALIGN = 0, 0.5, 4
SECONDS, MIN_ROUNDS, MAX_ROUNDS = 60.0, 4, 40
CHECKS = 7
_LAYER = 2  # a weight has at least so many axes

Weight = npt.NDArray[np.float32]


def pattern(weight: Weight, rng: np.random.Generator) -> Weight:
    """Return ``weight`` (M, C, ...) with two of every four input channels zero; as it is where C does not divide."""
    if weight.shape[1] % 4:
        return weight
    runs = np.moveaxis(weight, 1, -1).reshape(-1, 4).copy()
    np.put_along_axis(runs, np.argsort(rng.random(runs.shape), axis=1)[:, :2], 0, axis=1)
    shape = (weight.shape[0], *weight.shape[2:], weight.shape[1])
    return np.ascontiguousarray(np.moveaxis(runs.reshape(shape), -1, 1))


def anywhere(weight: Weight, rng: np.random.Generator, fraction: float) -> Weight:
    """Return ``weight`` with about this fraction of zeros."""
    return np.where(rng.random(weight.shape) < fraction, np.float32(0), weight)


def with_zeros(file: Path, output: Path, kind: str) -> FileSparsity:
    """Write ``file`` with zeros into ``output``; return what is in it."""
    rng = np.random.default_rng(SEED)
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim >= _LAYER and weight.dtype == np.float32 and weight.size > weight.shape[1]:
            zeroed = pattern(weight, rng) if kind == "2:4" else anywhere(weight, rng, float(kind.rstrip("%")) / 100)
            tensor.CopyFrom(numpy_helper.from_array(zeroed, tensor.name))
    onnx.save(model, str(output))
    return sparsity_of_onnx(output)


def measure_zeros(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Time the dense graph, those with zeros and the sliced path, interleaved; return one row each."""
    bundle = synthetic_bundle(
        folder / "zeros",
        model="resnet18" if quick else "resnet34",
        input_shape=(3, 32, 32),
        density=DENSITY,
        align=ALIGN,
        seed=SEED,
    )
    manifest = Bundle.open(bundle).manifest
    dense = bundle / manifest.graph(DENSE).file
    found = {"dense": sparsity_of_onnx(dense)}
    contents = {"dense": onnx.load(str(dense)).SerializeToString()}
    for kind in ("2:4", "50%", "90%"):
        output = folder / "zeros.onnx"
        found[kind] = with_zeros(dense, output, kind)
        contents[kind] = output.read_bytes()
    sliced = bundle / manifest.graph("clean").file
    found["channel"], contents["channel"] = sparsity_of_onnx(sliced), onnx.load(str(sliced)).SerializeToString()
    engines = [
        create_engine(
            REFERENCE_ENGINE,
            GraphBytes(model=content, weights=None, weights_name=None),
            inputs=manifest.input,
            outputs=manifest.output,
            options=EngineOptions(threads=1),
        )
        for content in contents.values()
    ]
    rng = np.random.default_rng(SEED)
    images = random_batch(manifest.input.shape, size=1, rng=rng)
    calls = [calls_per_block(engine, images) for engine in engines]
    started = time.perf_counter()
    interleave(engines, images, calls=calls, blocks=1, rng=rng)
    seconds = 1.0 if quick else SECONDS
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / (time.perf_counter() - started))))
    timed = dict(zip(contents, interleave(engines, images, calls=calls, blocks=rounds, rng=rng), strict=True))
    return [
        {
            "network": "resnet18" if quick else "resnet34",
            "zeros": kind,
            "zero_fraction": _zero_fraction(found[kind]),
            "two_four_layers": sum(layer.why_not is None for layer in found[kind].layers),
            "layers": len(found[kind].layers),
            "macs": found[kind].macs,
            "median_ms": summarise(blocks).median_ms,
            "speedup": asdict(speed_up(timed["dense"], blocks, rng=rng)),
            "rounds": rounds,
        }
        for kind, blocks in timed.items()
    ]


def _zero_fraction(found: FileSparsity) -> float:
    counted = [layer.zeros for layer in found.layers if layer.zeros is not None]
    return sum(zeros.zeros for zeros in counted) / sum(zeros.weights for zeros in counted)


def measure_check(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Time reading and reporting a ResNet-50, here and as a command."""
    bundle = synthetic_bundle(
        folder / "check",
        model="resnet18" if quick else "resnet50",
        input_shape=(3, 32, 32) if quick else (3, 224, 224),
        density=DENSITY,
        align=ALIGN,
        classes=1000,
        samples=2,
    )
    file = bundle / "dense/model.onnx"
    seconds, commands = [], []
    for _ in range(CHECKS):
        started = time.perf_counter()
        sparsity_of_onnx(file)
        seconds.append(time.perf_counter() - started)
    for _ in range(3):
        started = time.perf_counter()
        command = python_command("smart_export.cli", "check", str(file), "--json")
        subprocess.run(command, check=True, capture_output=True)
        commands.append(time.perf_counter() - started)
    return {
        "network": "resnet18" if quick else "resnet50",
        "seconds": statistics.median(seconds),
        "command_seconds": statistics.median(commands),
        "times": seconds,
    }


def goals(check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the check is held to, and whether it reaches it."""
    return [
        {
            "goal": f"reporting a ResNet-50's zeros takes under {GOAL_SECONDS:g} s",
            "value": check["seconds"],
            "reached": check["seconds"] < GOAL_SECONDS,
        }
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| network | zeros | of all weights | MMAC | ms | of dense |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        gain = row["speedup"]
        lines.append(
            f"| {row['network']} | {row['zeros']} | {row['zero_fraction']:.1%} | {row['macs'] / 1e6:.0f} "
            f"| {row['median_ms']:.2f} | {gain['value']:.2f}x ({gain['low']:.2f} to {gain['high']:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark; exit with status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, few blocks; figures mean nothing")
    parser.add_argument("--output", type=Path, help="the file of results; --quick writes none without it")
    options = parser.parse_args()
    output = options.output or (None if options.quick else RESULT)
    started, environment = time.perf_counter(), asdict(read_environment(packages=("onnx", "torch")))
    with tempfile.TemporaryDirectory() as folder:
        check = measure_check(Path(folder), quick=options.quick)
        rows = measure_zeros(Path(folder), quick=options.quick)
    found = {
        "command": "python benchmarks/bench_sparsity.py" + (" --quick" if options.quick else ""),
        "method": "zeros: medians of interleaved blocks in one process, 95% bootstrap interval over the rounds; check: "
        f"median of {CHECKS} times",
        "seconds": time.perf_counter() - started,
        "seed": SEED,
        "threads": 1,
        "goals": goals(check),
        "check": check,
        "rows": rows,
        "environment": environment,
    }
    took = f"reported in {check['seconds']:.2f} s, as a command in {check['command_seconds']:.2f} s"
    finish(found, output=output, lines=[table(rows), f"{check['network']}: {took}"])


if __name__ == "__main__":
    main()
