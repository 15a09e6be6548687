"""Compare the graphs of a bundle on this device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import calls_per_block, interleave, random_batch
from smart_runtime.bench.report import Report, Row
from smart_runtime.bench.statistics import Block, speed_up, summarise
from smart_runtime.bench.switching import measure_switch
from smart_runtime.bench.worker import SoloRequest, solo_median_ms
from smart_runtime.bundle import Bundle
from smart_runtime.engines import AUTO, Engine, create_engine, resolve_engine
from smart_runtime.manifest import DENSE, GraphInfo


def steps(bundle: Bundle, *, blocks: int) -> int:
    """Return how often `compare` calls ``advance``."""
    return blocks + len(bundle.manifest.graphs) + 1


def compare(
    bundle: Bundle,
    *,
    batch: int = 1,
    threads: int = 1,
    blocks: int = 40,
    seed: int = 0,
    engine: str = AUTO,
    advance: Callable[[str], None] = lambda _: None,
) -> Report:
    """Time every graph of ``bundle``, interleaved and each alone, then the switch.

    Args:
        bundle: An open bundle.
        batch: Images a call.
        threads: Threads a call may use.
        blocks: Blocks of calls a graph.
        seed: Of the input, the order of the blocks and the bootstrap.
        engine: An engine's name, or ``auto``.
        advance: Called after each unit of work; `steps` says how many there are.

    Raises:
        BundleError: A byte of the bundle was changed.
        EngineError: No such engine, or it failed.
        MissingExtraError: The engine's library is not installed.
    """
    environment = read_environment()  # first, so that the load average is not our own doing
    bundle.verify()
    name = resolve_engine(engine)
    images = random_batch(bundle.manifest.input, size=batch, rng=np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])  # a stream of its own: the order must not depend on the input's size
    with _engines(bundle, engine=name, threads=threads) as engines:
        calls = {graph: calls_per_block(engine, images) for graph, engine in engines.items()}
        timed = interleave(engines, images, calls=calls, blocks=blocks, rng=rng, advance=advance)
    solo = {}
    for graph in timed:
        request = SoloRequest(
            bundle=os.fspath(bundle.root.absolute()),
            graph=graph,
            engine=name,
            batch=batch,
            threads=threads,
            blocks=blocks,
            calls=calls[graph],
            seed=seed,
        )
        solo[graph] = solo_median_ms(request)
        advance("")
    switch = measure_switch(bundle, images, engine=name, threads=threads)
    advance("")
    baseline = bundle.manifest.baseline
    return Report(
        manifest=bundle.manifest,
        digest=bundle.digest,
        engine=name,
        batch=batch,
        threads=threads,
        seed=seed,
        rows=tuple(
            _row(graph, baseline=baseline, timed=timed, solo_ms=solo[graph.name], rng=rng)
            for graph in bundle.manifest.graphs
        ),
        switch=switch,
        environment=environment,
        blocks=timed,
    )


@contextmanager
def _engines(bundle: Bundle, *, engine: str, threads: int) -> Iterator[dict[str, Engine]]:
    """Yield an engine for every graph, made as `SmartModel` makes its own."""
    manifest = bundle.manifest
    engines: dict[str, Engine] = {}
    try:
        for graph in manifest.graphs:
            engines[graph.name] = create_engine(
                engine,
                bundle.graph_bytes(graph.name),
                inputs=manifest.input,
                outputs=manifest.output,
                threads=threads,
            )
        yield engines
    finally:
        for made in engines.values():
            made.close()


def _row(
    graph: GraphInfo,
    *,
    baseline: GraphInfo | None,
    timed: dict[str, list[Block]],
    solo_ms: float,
    rng: np.random.Generator,
) -> Row:
    summary = summarise(timed[graph.name])
    ratio = None if baseline is None else speed_up(timed[DENSE], timed[graph.name], rng=rng)
    return Row(
        name=graph.name,
        median_ms=summary.median_ms,
        p90_ms=summary.p90_ms,
        p99_ms=summary.p99_ms,
        solo_median_ms=solo_ms,
        macs=graph.macs,
        parameters=graph.parameters,
        bytes=graph.bytes,
        speedup=None if ratio is None else ratio.value,
        speedup_low=None if ratio is None else ratio.low,
        speedup_high=None if ratio is None else ratio.high,
        mac_ratio=None if baseline is None or graph.macs == 0 else baseline.macs / graph.macs,
    )
