"""Compare the graphs of one or more bundles, and any other ONNX classifier, on this device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from smart_devices.clocks import read_clocks, read_throttling
from smart_devices.engine_rows import engine_info
from smart_devices.nvml import Gpu, open_gpu
from smart_devices.power import NoPower, PowerSource
from smart_runtime.bench.baseline import try_baseline
from smart_runtime.bench.contenders import Contender, contenders, open_contender, read_baseline, reference
from smart_runtime.bench.energy import PHASE_S, Energy, measure_energy
from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import (
    WARM_UP_MS,
    Block,
    calls_per_block,
    interleave,
    random_batch,
    speed_up,
    summarise,
)
from smart_runtime.bench.report import Report, Row
from smart_runtime.bench.switching import measure_switch
from smart_runtime.bench.worker import SoloRequest, solo_median_ms
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.engines import AUTO, Batch, DeviceTimes, Engine, choose_engine
from smart_runtime.notes import log_notes, notes_on

NOT_ASKED = "not asked for"

_TIMED_CALLS = 3  # a block, after it: enough for a median over all blocks, and the block itself is of plain calls


def steps(
    bundles: Mapping[str, Bundle],
    *,
    baseline: Path | None = None,
    blocks: int,
    power: PowerSource | NoPower | None = None,
) -> int:
    """Return how often `compare` calls ``advance``."""
    graphs = sum(len(bundle.manifest.graphs) for bundle in bundles.values()) + (baseline is not None)
    return blocks + graphs * (2 if isinstance(power, PowerSource) else 1) + 1


def compare(
    bundles: Mapping[str, Bundle],
    *,
    baseline: Path | None = None,
    batch: int = 1,
    threads: int = 1,
    blocks: int = 40,
    seed: int = 0,
    engine: str = AUTO,
    power: PowerSource | NoPower | None = None,
    phase_s: float = PHASE_S,
    root: Path = Path("/"),
    advance: Callable[[str], None] = lambda _: None,
) -> Report:
    """Time every graph of ``bundles`` and ``baseline``, interleaved and each alone, then the first bundle's switch.

    Args:
        bundles: At least one open bundle by its path, from `open_bundles`.
        baseline: A user's own ONNX classifier for the same images.
        batch: Images a call.
        threads: Threads a call may use.
        blocks: Blocks of calls a graph, 2 or more.
        seed: Of the input, the order of the blocks and the bootstrap.
        engine: An engine's name, or ``auto``.
        power: The sensor to measure energy with, from `smart_devices.power.find_power`; None measures none.
        phase_s: How long each graph runs for that, at least.
        root: Where the kernel's files lie; another place in tests.
        advance: Called after each unit of work; `steps` says how many there are.

    Raises:
        BundleError: A byte of a bundle was changed.
        EngineError: No such engine, or it failed, or refuses the baseline.
        InputError: A file of the baseline is missing.
        MissingExtraError: The engine's library is not installed.
        OSError: The system cannot read a file.
    """
    name = choose_engine(engine, next(iter(bundles.values()))).engine
    gpu = _card(name)
    environment = read_environment(root=root, gpu=gpu)  # early, so that the load average is not our own doing
    given = None if baseline is None else read_baseline(baseline)
    for bundle in bundles.values():
        bundle.verify()
        log_notes(notes_on(bundle.manifest, engine_name=name))
    graphs = contenders(bundles, baseline=given)
    if given is not None:
        try_baseline(graphs[0], engine=name, batch=batch, threads=threads, seed=seed)
    images = random_batch(graphs[0].source.shape, size=batch, rng=np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])  # a stream of its own: the order must not depend on the input's size
    before = read_throttling(root=root, gpu=gpu)
    timed = _interleaved(graphs, images, engine=name, threads=threads, blocks=blocks, rng=rng, advance=advance)
    clocks, throttled = read_clocks(root=root, gpu=gpu), read_throttling(root=root, gpu=gpu).since(before)
    solo_ms = []
    for graph, count in zip(graphs, timed.calls, strict=True):
        request = SoloRequest(
            source=graph.source, engine=name, batch=batch, threads=threads, blocks=blocks, calls=count, seed=seed
        )
        solo_ms.append(solo_median_ms(request))
        advance("")
    first = next(iter(bundles.values()))
    switch = measure_switch(first, images, engine=name, threads=threads)
    advance("")
    energies, sensing = measure_energy(
        graphs,
        images,
        source=NoPower(reason=NOT_ASKED) if power is None else power,
        engine=name,
        threads=threads,
        phase_s=phase_s,
        advance=advance,
    )
    against = reference(graphs)
    return Report(
        bundles=bundles,
        baseline=given,
        engine=name,
        batch=batch,
        threads=threads,
        seed=seed,
        rows=tuple(
            _row(
                graph,
                timed.blocks[i],
                on_device=timed.on_device[i],
                solo_ms=solo_ms[i],
                energy=energies[i],
                against=None if against is None else (graphs[against], timed.blocks[against]),
                rng=rng,
            )
            for i, graph in enumerate(graphs)
        ),
        reference=against,
        switch=switch,
        energy=sensing,
        clocks=clocks,
        throttled=throttled,
        environment=replace(
            environment,
            gpu=environment.gpu or timed.described.get("device"),  # without nvidia-ml-py the engine still knows it
            library=timed.described.get("library"),
            lanes=timed.described.get("lanes"),
        ),
    )


def _card(engine: str) -> Gpu | None:
    """Return the graphics card that computes for ``engine``; None where none does or none answers."""
    gpu = open_gpu() if engine_info(engine).part == "gpu" else None
    return gpu if isinstance(gpu, Gpu) else None


@dataclass(kw_only=True)
class _Timed:
    """What the interleaved blocks gave, for each graph: calls a block, its blocks, calls by the GPU's own clock.

    ``described`` is what the first graph's engine says of itself.
    """

    calls: list[int]
    blocks: list[list[Block]] = field(default_factory=list)
    on_device: list[list[DeviceTimes]]
    described: Mapping[str, Any]


def _interleaved(
    graphs: Sequence[Contender],
    images: Batch,
    *,
    engine: str,
    threads: int,
    blocks: int,
    rng: np.random.Generator,
    advance: Callable[[str], None],
) -> _Timed:
    part = engine_info(engine).part
    warm_up_ms = WARM_UP_MS[part]
    with ExitStack() as open_engines:
        engines: list[Engine] = []
        for graph in graphs:
            made = open_contender(graph.source, engine=engine, batch=len(images), threads=threads)
            open_engines.callback(made.close)
            engines.append(made)
        timed = _Timed(
            calls=[calls_per_block(made, images, warm_up_ms=warm_up_ms) for made in engines],
            on_device=[[] for _ in engines],
            described=engines[0].describe(),
        )

        def after_block(index: int) -> None:
            for _ in range(_TIMED_CALLS if part == "gpu" else 0):
                times = engines[index].run_timed(images)[1]
                if times is None:
                    return
                timed.on_device[index].append(times)

        timed.blocks = interleave(
            engines,
            images,
            calls=timed.calls,
            blocks=blocks,
            rng=rng,
            warm_up_ms=warm_up_ms,
            after_block=after_block,
            advance=advance,
        )
        return timed


def _row(
    graph: Contender,
    blocks: Sequence[Block],
    *,
    on_device: Sequence[DeviceTimes],
    solo_ms: float,
    energy: Energy,
    against: tuple[Contender, Sequence[Block]] | None,
    rng: np.random.Generator,
) -> Row:
    ratio = None if against is None else speed_up(against[1], blocks, rng=rng)
    reference_macs = None if against is None else against[0].macs
    return Row(
        name=graph.name,
        bundle=graph.bundle,
        precision=graph.precision,
        **asdict(summarise(blocks)),
        solo_median_ms=solo_ms,
        gpu_ms=_median([times.compute_ms for times in on_device]),
        copies_ms=_median([times.copy_in_ms + times.copy_out_ms for times in on_device]),
        macs=graph.macs,
        parameters=graph.parameters,
        bytes=graph.bytes,
        speedup=None if ratio is None else ratio.value,
        speedup_low=None if ratio is None else ratio.low,
        speedup_high=None if ratio is None else ratio.high,
        mac_ratio=reference_macs / graph.macs if reference_macs is not None and graph.macs else None,
        **asdict(energy),
        blocks=tuple(blocks),
    )


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
