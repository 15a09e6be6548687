"""What each graph costs in energy: run in turn for some seconds, since a sensor sees no single call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smart_devices.power import NoPower, PowerSampler, PowerSource
from smart_runtime.bench.contenders import Contender, open_contender
from smart_runtime.engines import Batch, Engine

PHASE_S = 2.0
"""How long a graph runs, and the machine idles, at least."""

_SETTLES = 10  # a phase is so many times as long as the sensor averages, or a good part of it were the one before


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What one graph took: mean power, and energy of one image, in all and above the idle machine's.

    All are None where the sensor failed on the way.
    """

    power_w: float | None
    energy_mj: float | None
    energy_above_idle_mj: float | None


UNKNOWN = Energy(power_w=None, energy_mj=None, energy_above_idle_mj=None)


@dataclass(frozen=True, kw_only=True)
class Sensing:
    """How energy was measured: with what, of what, for how long each graph, and what the idle machine draws.

    All are None without a sensor; ``unknown`` says why figures are missing, None if none is.
    """

    source: str | None = None
    measures: str | None = None
    phase_s: float | None = None
    idle_w: float | None = None
    unknown: str | None = None


def measure_energy(
    graphs: Sequence[Contender],
    images: Batch,
    *,
    source: PowerSource | NoPower,
    engine: str,
    threads: int,
    phase_s: float = PHASE_S,
    advance: Callable[[str], None] = lambda _: None,
) -> tuple[list[Energy], Sensing]:
    """Let the machine idle, then run each graph on ``images``; return what each took, and how that was measured.

    Without a sensor nothing is run.

    Args:
        graphs: What to run, one after the other.
        images: The input of every call.
        source: The sensor.
        engine: An engine's name.
        threads: Threads a call may use.
        phase_s: How long each phase takes at least.
        advance: Called after each graph.

    Raises:
        BundleError: A bundle is another one than before.
        EngineError: The engine failed.
        OSError: The system cannot read a file.
    """
    if isinstance(source, NoPower):
        return [UNKNOWN] * len(graphs), Sensing(unknown=source.reason)
    length_s = max(phase_s, _SETTLES * source.settle_s) if phase_s else 0.0
    time.sleep(min(source.settle_s, length_s))  # what ran before must be over for the sensor too
    with PowerSampler(source) as idle:
        time.sleep(length_s)
    rows, reasons = [], [idle.unknown]
    for graph in graphs:
        made = open_contender(graph.source, engine=engine, batch=len(images), threads=threads)
        try:
            energy, reason = _of_one(made, images, source=source, length_s=length_s, idle_w=idle.mean_watts)
        finally:
            made.close()
        rows.append(energy)
        reasons.append(reason)
        advance("")
    return rows, Sensing(
        source=source.name,
        measures=source.measures,
        phase_s=length_s,
        idle_w=idle.mean_watts,
        unknown=next((reason for reason in reasons if reason is not None), None),
    )


def _of_one(
    engine: Engine, images: Batch, *, source: PowerSource, length_s: float, idle_w: float | None
) -> tuple[Energy, str | None]:
    """Return what the graph in ``engine`` takes, or nothing and why."""
    _run_for(min(source.settle_s, length_s), engine, images)
    with PowerSampler(source) as power:
        calls = _run_for(length_s, engine, images)
    if power.joules is None or power.mean_watts is None:
        return UNKNOWN, power.unknown
    done = calls * len(images)
    above = None if idle_w is None else 1e3 * (power.mean_watts - idle_w) * power.seconds / done
    return Energy(power_w=power.mean_watts, energy_mj=1e3 * power.joules / done, energy_above_idle_mj=above), None


def _run_for(seconds: float, engine: Engine, images: Batch) -> int:
    """Run the graph again and again, at least once; return how often."""
    end_s, calls = time.monotonic() + seconds, 0
    while True:
        engine.run(images)
        calls += 1
        if time.monotonic() >= end_s:
            return calls
