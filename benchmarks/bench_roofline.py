"""How near the calibrated estimate comes to what is measured, on networks that the calibration never saw.

    .venv/bin/python benchmarks/bench_roofline.py

The probes of `smart-bench --calibrate` take turns with the graphs of untrained networks, one thread, ONNX Runtime on
the CPU, so that all see the same machine; then every graph's latency is estimated from the probes' times alone. The
goal: of ResNet-34 at 3x32x32, dense and both paths at batch 1 and 8, within 30% of the measured median. The other
networks show where the model ends. Other work on the machine lengthens a call by the time that it has to wait for a
core; the processor time of a call, which with one thread is all of it on a quiet machine, is given too.

Takes about two minutes; writes benchmarks/results/roofline.json with the environment, prints the table and ends with
status 1 if a goal is missed. --quick only shows that it works, and writes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mobilenet import MobileNetV3
from outcome import finish
from synthetic import synthetic_bundle
from torch import nn

from smart_devices.roofline import Calibration, Estimate, calibration_key, estimate
from smart_runtime.bench.calibrate import fitted, open_probes, timings_of
from smart_runtime.bench.contenders import Contender, contenders, open_bundles, open_contender
from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import calls_per_block, interleave, random_batch
from smart_runtime.bench.statistics import Block
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.engines import Batch, Engine, Scores, resolve_engine

RESULT = Path(__file__).resolve().parent / "results/roofline.json"
GOAL = 0.3
SEED = 0
DENSITY, ALIGN = 0.5, 4
ROUNDS = 10


@dataclass(frozen=True)
class Network:
    """What is measured, at these batch sizes; ``make`` is for those that have no name."""

    model: str
    input_shape: tuple[int, int, int]
    classes: int
    batches: Sequence[int] = (1,)
    make: Callable[..., nn.Module] | None = field(default=None, repr=False)


GOAL_NETWORK = Network("resnet34", (3, 32, 32), 10, batches=(1, 8))
FULL = (
    GOAL_NETWORK,
    Network("wrn16-8", (3, 32, 32), 10),
    Network("resnet50", (3, 224, 224), 1000),
    Network("mobilenetv3-small", (3, 224, 224), 1000, make=MobileNetV3),
)
QUICK = (Network("resnet18", (3, 16, 16), 10, batches=(1, 2)),)


class OnImages:
    """An engine that runs on images of its own, whatever it is given, to take turns with those of other networks.

    Attributes:
        processor_ms: the processor time of every call.
    """

    def __init__(self, engine: Engine, images: Batch) -> None:
        self._engine, self._images = engine, images
        self.processor_ms: list[float] = []

    def run(self, batch: Batch) -> Scores:  # noqa: ARG002  # an engine gets one; this one has its own
        """Run the graph; see `Engine.run`."""
        start_ns = time.thread_time_ns()  # with one thread, an engine computes in its caller's
        scores = self._engine.run(self._images)
        self.processor_ms.append((time.thread_time_ns() - start_ns) / 1e6)
        return scores

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()


@dataclass(frozen=True)
class Measured:
    """A graph at a batch size."""

    network: Network
    bundle: Bundle
    graph: Contender
    batch: int


def build(network: Network, folder: Path) -> list[Measured]:
    """Return the network's graphs at each of its batch sizes."""
    place = synthetic_bundle(
        folder / network.model,
        model=network.model,
        input_shape=network.input_shape,
        density=DENSITY,
        align=ALIGN,
        classes=network.classes,
        seed=SEED,
        samples=2,
        network=network.make and network.make(num_classes=network.classes, in_channels=network.input_shape[0]),
    )
    bundles = open_bundles([str(place)])
    (bundle,) = bundles.values()
    return [
        Measured(network, bundle, graph, batch)
        for batch in network.batches
        for graph in contenders(bundles, baseline=None)
    ]


@dataclass(frozen=True)
class Times:
    """What a graph took: its blocks of calls, and the processor time of each call, in ms."""

    blocks: Sequence[Block]
    processor_ms: Sequence[float]


def measure(graphs: Sequence[Measured], *, rounds: int) -> tuple[Calibration, list[Times]]:
    """Return the calibration, and the times of each graph, all of the same rounds."""
    name, rng = resolve_engine("auto"), np.random.default_rng(SEED)
    with ExitStack() as opened:
        probes = open_probes(threads=1, rng=rng, opened=opened)
        engines = []
        for one in graphs:
            images = random_batch(one.network.input_shape, size=one.batch, rng=rng)
            engine = open_contender(one.graph.source, engine=name, batch=one.batch, threads=1)
            opened.callback(engine.close)
            engines.append(OnImages(engine, images))
        every: list[Engine] = [*probes, *engines]
        calls = [calls_per_block(engine, images) for engine in every]
        blocks = interleave(every, images, calls=calls, blocks=rounds, rng=rng)
    calibration = fitted(timings_of(blocks[: len(probes)]), key=calibration_key(threads=1, engine=name))
    times = zip(engines, blocks[len(probes) :], strict=True)
    return calibration, [Times(of_graph, engine.processor_ms) for engine, of_graph in times]


def record(one: Measured, times: Times, calibration: Calibration) -> dict[str, Any]:
    """Return one row of the results."""
    found = estimate(one.bundle.manifest.graph(one.graph.name).layers, roof=calibration, batch=one.batch)
    assert isinstance(found, Estimate), found
    calls = np.concatenate(times.blocks)
    median_ms = float(np.median(calls))
    return {
        "network": one.network.model,
        "input_shape": list(one.network.input_shape),
        "batch": one.batch,
        "name": one.graph.name,
        "expected_ms": found.latency_ms,
        "median_ms": median_ms,
        "processor_ms": float(np.median(times.processor_ms)),
        "expected_over_median": found.latency_ms / median_ms,
        "memory_bound": found.share("memory"),
        "calls": len(calls),
    }


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what every graph of ResNet-34 is held to, and whether it reaches it."""
    errors = {
        f"{row['network']}, batch {row['batch']}, {row['name']}": abs(row["expected_over_median"] - 1)
        for row in rows
        if row["network"] == GOAL_NETWORK.model
    }
    return [
        {
            "goal": f"{name}: the estimate of ResNet-34, calibrated on other graphs, is within {GOAL:.0%} of measured",
            "value": error,
            "reached": error <= GOAL,
        }
        for name, error in errors.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| network | batch | graph | expected ms | measured ms | expected / measured | processor ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['network']} | {row['batch']} | {row['name']} | {row['expected_ms']:.2f} | {row['median_ms']:.2f} "
        f"| {row['expected_over_median']:.2f} | {row['processor_ms']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark; exit with status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network, few rounds; figures mean nothing")
    parser.add_argument("--output", type=Path, help="the file of results; --quick writes none without it")
    options = parser.parse_args()
    output = options.output or (None if options.quick else RESULT)
    started, environment = time.perf_counter(), asdict(read_environment(packages=("torch",)))
    with tempfile.TemporaryDirectory() as folder:
        graphs = [one for network in (QUICK if options.quick else FULL) for one in build(network, Path(folder))]
        calibration, times = measure(graphs, rounds=2 if options.quick else ROUNDS)
        rows = [record(one, of_one, calibration) for one, of_one in zip(graphs, times, strict=True)]
    found = {
        "command": "python benchmarks/bench_roofline.py" + (" --quick" if options.quick else ""),
        "method": "probes and graphs in interleaved blocks of calls in one process; estimates from the probes' "
        "shortest calls, measured are medians; untrained weights, random masks",
        "seconds": time.perf_counter() - started,
        "seed": SEED,
        "threads": 1,
        "goals": goals(rows),
        "calibration": asdict(calibration),
        "rows": rows,
        "environment": environment,
    }
    finish(found, output=output, lines=[table(rows), calibration.assumes])


if __name__ == "__main__":
    main()
