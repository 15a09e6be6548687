"""What can say how much power this machine draws, and from its readings to joules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from smart_devices.errors import SensorError

Part: TypeAlias = Literal["cpu", "gpu"]
"""What of the machine runs the network."""

SourceName: TypeAlias = Literal["ina3221", "ina238", "nvml", "rapl"]

_MOST_WATTS = 1000.0
"""More than one processor's package draws: how soon a counter may wrap twice is judged by it, and whether it did."""

_IMPOSSIBLE_WATTS = 10_000.0
"""No board or card draws as much: a reading of more is none."""

_LATE_S = 1.0  # a counter moves in steps, and a step may show just after a reading


class Meter(Protocol):
    """Adds up energy over the readings of one sensor."""

    def read(self, at_s: float) -> None:
        """Read the sensor; ``at_s`` is the time in seconds on any clock that never goes back.

        Raises:
            SensorError: It gave no reading, or one that cannot be right.
        """
        ...

    @property
    def joules(self) -> float:
        """The energy between the first and the last reading.

        Raises:
            SensorError: The readings say nothing about it.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PowerSource:
    """A sensor, or a sum of them.

    Attributes:
        name: What kind it is.
        measures: What of the machine draws the power that it reads, in words for people.
        period_s: How often it should be read.
        settle_s: How long a change of load takes to show in full in its readings.
        new_meter: Makes a meter that starts at 0.
    """

    name: SourceName
    measures: str
    period_s: float
    settle_s: float
    new_meter: Callable[[], Meter]


@dataclass(frozen=True, kw_only=True)
class NoPower:
    """There is no sensor that can be read; ``reason`` says why and what helps, as part of a sentence."""

    reason: str


class PowerMeter:
    """Energy of a power that is read now and then; between two readings it changes evenly (trapezoidal rule).

    Args:
        watts: Reads it; raises SensorError.
    """

    def __init__(self, watts: Callable[[], float]) -> None:
        self._watts = watts
        self._last: tuple[float, float] | None = None
        self._joules = 0.0

    def read(self, at_s: float) -> None:
        """Read the power; see `Meter.read`."""
        watts = self._watts()
        if not abs(watts) < _IMPOSSIBLE_WATTS:
            raise SensorError(f"it gave {watts:.3g} W, which cannot be")
        if self._last is not None:
            before_s, before_w = self._last
            self._joules += (at_s - before_s) * (before_w + watts) / 2
        self._last = at_s, watts

    @property
    def joules(self) -> float:
        """See `Meter.joules`; a rail may be below 0 when idle, but a machine that runs gives nothing back."""
        if self._joules <= 0:
            raise SensorError("its power is not above 0")
        return self._joules


@dataclass(frozen=True, kw_only=True)
class Counter:
    """A counter of energy: how to ``read`` it, what one count is, and after which count it starts from 0 again.

    ``wraps_after`` is None for one that never does. ``read`` raises SensorError.
    """

    read: Callable[[], int]
    joules_per_count: float
    wraps_after: int | None = None

    @property
    def safe_s(self) -> float:
        """How long it takes at least to wrap: two readings further apart say nothing."""
        return float("inf") if self.wraps_after is None else self.wraps_after * self.joules_per_count / _MOST_WATTS


class CounterMeter:
    """Energy that the sensor itself adds up: the sum of what one or more counters have moved on."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = tuple(counters)
        self._last: tuple[float, list[int]] | None = None
        self._joules = [0.0] * len(self._counters)

    def read(self, at_s: float) -> None:
        """Read every counter; see `Meter.read`."""
        counts = [counter.read() for counter in self._counters]
        if self._last is not None:
            before_s, before = self._last
            for i, (counter, old, new) in enumerate(zip(self._counters, before, counts, strict=True)):
                self._joules[i] += _moved(counter, old, new, seconds=at_s - before_s)
        self._last = at_s, counts

    @property
    def joules(self) -> float:
        """See `Meter.joules`; a machine that runs uses energy, so counters that stood still are none."""
        if min(self._joules) <= 0:
            raise SensorError("its counter does not move, as in virtual machines")
        return sum(self._joules)


def _moved(counter: Counter, old: int, new: int, *, seconds: float) -> float:
    """Return the joules by which ``counter`` moved on in ``seconds``; where it was set back, nothing tells them."""
    if seconds > counter.safe_s:
        raise SensorError("its counter was read too seldom to tell how often it wrapped")
    if new >= old:
        return (new - old) * counter.joules_per_count
    if counter.wraps_after is None or old > counter.wraps_after:
        raise SensorError("its counter went back")
    joules = (new - old + counter.wraps_after) * counter.joules_per_count
    if joules > _MOST_WATTS * (seconds + _LATE_S):
        raise SensorError("its counter went back")
    return joules
