"""Time engines against each other in one process, in interleaved blocks of calls.

One graph measured after the other would measure the machine's drift (clocks, heat, other programs) as much as the
graphs; in interleaved blocks every graph sees the same machine. What is timed is `Engine.run` on prepared float32
input.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from smart_runtime.bench.statistics import Block
from smart_runtime.engines import Batch, Scores

DISCARDED_CALLS = 3
"""The first calls of a block find caches that another graph has filled; they are not counted."""

_MIN_CALLS = 8
_MAX_CALLS = 203
_BLOCK_MS = 10.0  # a block this long is many timer ticks and scheduler slices, even of calls of 50 us


class Runs(Protocol):
    """What can be timed: an engine, or anything else with its `Engine.run`."""

    def run(self, batch: Batch) -> Scores:
        """Return the scores of a batch."""
        ...


def random_batch(shape: tuple[int, int, int], *, size: int, rng: np.random.Generator) -> Batch:
    """Return uniform noise in [0, 1): float32, (size, channels, height, width) for a ``shape`` without the size."""
    return rng.random((size, *shape), dtype=np.float32)


def calls_per_block(engine: Runs, batch: Batch) -> int:
    """Return how many calls make a block: at least 8, more where calls are short, so that a block is not all noise."""
    call_ms = float(np.median(time_block(engine, batch, calls=_MIN_CALLS)))
    return min(_MAX_CALLS, max(_MIN_CALLS, DISCARDED_CALLS + math.ceil(_BLOCK_MS / call_ms)))


def time_block(engine: Runs, batch: Batch, *, calls: int) -> Block:
    """Return the latencies in ms of ``calls`` calls in a row, without the first `DISCARDED_CALLS`."""
    ticks = np.empty(calls + 1, dtype=np.int64)
    ticks[0] = time.perf_counter_ns()
    for i in range(calls):
        engine.run(batch)
        ticks[i + 1] = time.perf_counter_ns()
    latencies: Block = np.diff(ticks)[DISCARDED_CALLS:] / 1e6
    return latencies


def interleave(
    engines: Sequence[Runs],
    batch: Batch,
    *,
    calls: Sequence[int],
    blocks: int,
    rng: np.random.Generator,
    advance: Callable[[str], None] = lambda _: None,
) -> list[list[Block]]:
    """Run ``blocks`` rounds, in each one block of every engine in a random order; return each engine's blocks.

    Args:
        engines: What is compared.
        batch: The input of every call.
        calls: Calls a block, of each engine.
        blocks: Rounds, so blocks an engine.
        rng: Draws the order.
        advance: Called after each round.
    """
    result: list[list[Block]] = [[] for _ in engines]
    for _ in range(blocks):
        for index in rng.permutation(len(engines)):
            result[index].append(time_block(engines[index], batch, calls=calls[index]))
        advance("")
    return result
