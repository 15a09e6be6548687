"""What a switch costs, and what a user without it pays."""

from __future__ import annotations

import hashlib
import statistics
import time
from dataclasses import dataclass

import numpy as np

from smart_runtime.bench.contenders import check_same
from smart_runtime.bundle.bundle import Bundle, check_sum
from smart_runtime.bundle.files import MAX_FILE_BYTES, read_bounded
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.engines import Batch, EngineOptions, create_engine
from smart_runtime.model import SmartModel

_SWITCHES = 400
_FIRST_RESULTS = 40
_COLD_LOADS = 7


@dataclass(frozen=True, kw_only=True)
class SwitchTimes:
    """Times of a switch from the default path to another one.

    ``median_us`` and ``p99_us`` are of the call of `SmartModel.switch` alone; ``first_result_ms``, a median, is from
    the switch to the first scores of the new path; ``cold_load_ms``, a median, is what the same costs without the
    switch: reading the new path's files (they are in the page cache: a cold disk is slower still), creating its engine,
    first scores. Checksums are left out of it, since a user without us need not compute any.
    """

    median_us: float
    p99_us: float
    first_result_ms: float
    cold_load_ms: float


def measure_switch(bundle: Bundle, batch: Batch, *, engine: str, threads: int) -> SwitchTimes | None:
    """Return the times of a switch on ``bundle``; None where it has one path only.

    Raises:
        BundleError: Another bundle took its place.
        EngineError: The engine failed.
        OSError: The system cannot read a file.
    """
    manifest = bundle.manifest
    others = [name for name in manifest.paths if name != manifest.default_path]
    if not others:
        return None
    with SmartModel.load(bundle.root, engine=engine, threads=threads) as model:
        check_same(model.bundle, digest=bundle.digest)
        switch_us = [
            _switch_us(model, path) for _ in range(_SWITCHES // 2) for path in (others[0], manifest.default_path)
        ]
        first_ms = [first_result_ms(model, batch, path=others[0]) for _ in range(_FIRST_RESULTS)]
    cold_ms = [cold_load_ms(bundle, batch, path=others[0], engine=engine, threads=threads) for _ in range(_COLD_LOADS)]
    median_us, p99_us = np.percentile(switch_us, [50, 99])
    return SwitchTimes(
        median_us=float(median_us),
        p99_us=float(p99_us),
        first_result_ms=statistics.median(first_ms),
        cold_load_ms=statistics.median(cold_ms),
    )


def _switch_us(model: SmartModel, path: str) -> float:
    start_ns = time.perf_counter_ns()
    model.switch(path)
    return (time.perf_counter_ns() - start_ns) / 1e3


def first_result_ms(model: SmartModel, batch: Batch, *, path: str) -> float:
    """Return the time from the switch to ``path``, which is not the default one, to its first scores."""
    model.switch(model.manifest.default_path)
    for _ in range(3):  # the old path is in full use, as in the field
        model(batch)
    start_ns = time.perf_counter_ns()
    model.switch(path)
    model(batch)
    return (time.perf_counter_ns() - start_ns) / 1e6


def cold_load_ms(bundle: Bundle, batch: Batch, *, path: str, engine: str, threads: int) -> float:
    """Return the time from reading the files of ``path`` to the first scores of an engine made from them."""
    info, manifest = bundle.manifest.graph(path), bundle.manifest
    start_ns = time.perf_counter_ns()
    contents = [read_bounded(bundle.root, name, max_bytes=MAX_FILE_BYTES) for name in info.files]
    read_ns = time.perf_counter_ns() - start_ns
    for name, content in zip(info.files, contents, strict=True):  # not timed, but no other bytes may reach an engine
        check_sum(name, hashlib.sha256(content).hexdigest(), expected=bundle.sums[name])
    graph = GraphBytes.of(info, contents, manifest=bundle.manifest)
    start_ns = time.perf_counter_ns()
    options = EngineOptions(threads=threads)
    cold = create_engine(engine, graph, inputs=manifest.input, outputs=manifest.output, options=options)
    cold.run(batch)
    elapsed_ms = (read_ns + time.perf_counter_ns() - start_ns) / 1e6
    cold.close()
    return elapsed_ms
