"""Time engines against each other in one process, in interleaved blocks of calls, and sum up what they take.

One graph measured after the other would measure the machine's drift (clocks, heat, other programs) as much as the
graphs; in interleaved blocks every graph sees the same machine. What is timed is `Engine.run` on prepared float32
input.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from smart_runtime.engines import Batch, Scores

Block: TypeAlias = npt.NDArray[np.float64]
"""The latencies of one block of calls in ms, (calls,)."""

Rounds: TypeAlias = npt.NDArray[np.int64]
"""Which rounds of a run to take, by number, (rounds,); a bootstrap takes some of them more than once."""

Figures: TypeAlias = npt.NDArray[np.float64]

SOLO_TOLERANCE = 0.15
"""How far the median in a process of its own may lie from the interleaved one before the table says so."""

DISCARDED_CALLS = 3
"""The first calls of a block find caches that another graph has filled; they are not counted."""

WARM_UP_MS: Mapping[str, float] = MappingProxyType({"cpu": 0.0, "gpu": 50.0})
"""How long a block runs uncounted before that, at least, by the part that computes: a GPU clocks down between blocks,
while the host works or another graph's block begins, and takes tens of milliseconds to clock up."""

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


def calls_per_block(engine: Runs, batch: Batch, *, warm_up_ms: float = 0.0) -> int:
    """Return how many calls make a block: at least 8, more where calls are short, so that a block is not all noise."""
    call_ms = float(np.median(time_block(engine, batch, calls=_MIN_CALLS, warm_up_ms=warm_up_ms)))
    return min(_MAX_CALLS, max(_MIN_CALLS, DISCARDED_CALLS + math.ceil(_BLOCK_MS / call_ms)))


def time_block(engine: Runs, batch: Batch, *, calls: int, warm_up_ms: float = 0.0) -> Block:
    """Return the latencies in ms of ``calls`` calls in a row, without the first `DISCARDED_CALLS`.

    Args:
        engine: What is timed.
        batch: The input of every call.
        calls: How many, counted or discarded.
        warm_up_ms: How long to call before that, at least; see `WARM_UP_MS`.
    """
    end_ns = time.perf_counter_ns() + 1e6 * warm_up_ms
    while warm_up_ms and time.perf_counter_ns() < end_ns:
        engine.run(batch)
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
    warm_up_ms: float = 0.0,
    after_block: Callable[[int], None] = lambda _: None,
    advance: Callable[[str], None] = lambda _: None,
) -> list[list[Block]]:
    """Run ``blocks`` rounds, in each one block of every engine in a random order; return each engine's blocks.

    Args:
        engines: What is compared.
        batch: The input of every call.
        calls: Calls a block, of each engine.
        blocks: Rounds, so blocks an engine.
        rng: Draws the order.
        warm_up_ms: Of each block; see `time_block`.
        after_block: Called after each block with the place of its engine, while the machine is as it was in the block.
        advance: Called after each round.
    """
    result: list[list[Block]] = [[] for _ in engines]
    for _ in range(blocks):
        for index in rng.permutation(len(engines)):
            result[index].append(time_block(engines[index], batch, calls=calls[index], warm_up_ms=warm_up_ms))
            after_block(int(index))
        advance("")
    return result


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Median and percentiles of all calls, in ms (linear interpolation between neighbours)."""

    median_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with the ends of its 95% interval.

    The interval holds within one run: it does not cover another process or another day.
    """

    value: float
    low: float
    high: float


def summarise(blocks: Sequence[Block]) -> Summary:
    """Return the figures of all calls of ``blocks`` together."""
    median, p90, p99 = np.percentile(np.concatenate(blocks), [50, 90, 99])
    return Summary(median_ms=float(median), p90_ms=float(p90), p99_ms=float(p99))


def resampled(
    figures: Callable[[Rounds], float | Figures], *, rounds: int, resamples: int, rng: np.random.Generator
) -> Figures:
    """Return ``figures`` of each bootstrap resample of a run's ``rounds``, (resamples, ...).

    Rounds are drawn with replacement, and all blocks of a drawn round are to be taken: they ran one after the other, so
    whatever slowed the machine down then slowed them all. Calls of one block are not independent, hence rounds and not
    calls (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).
    """
    return np.array([figures(rng.integers(0, rounds, rounds)) for _ in range(resamples)])


def interval(value: float, drawn: Figures) -> Interval:
    """Return ``value`` with the percentile bootstrap 95% interval of what was ``drawn`` for it, (resamples,)."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value=float(value), low=float(low), high=float(high))


def speed_up(
    baseline: Sequence[Block], path: Sequence[Block], *, rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return the ratio of the medians, baseline over path, with its percentile bootstrap 95% interval.

    Args:
        baseline: One block a round.
        path: One block a round, of the same rounds.
        rng: Draws the rounds.
        resamples: How often rounds are drawn.
    """

    def ratio(rounds: Rounds) -> float:
        return _median([baseline[i] for i in rounds]) / _median([path[i] for i in rounds])

    every = np.arange(len(baseline))
    return interval(ratio(every), resampled(ratio, rounds=len(every), resamples=resamples, rng=rng))


def agrees(solo_median_ms: float, median_ms: float) -> bool:
    """Say whether a graph alone in a process is as fast as among the others, within `SOLO_TOLERANCE`."""
    return abs(solo_median_ms - median_ms) <= SOLO_TOLERANCE * median_ms


def _median(blocks: Sequence[Block]) -> float:
    return float(np.median(np.concatenate(blocks)))
