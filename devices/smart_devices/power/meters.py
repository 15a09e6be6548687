"""From a sensor's readings to joules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from smart_devices.errors import SensorError

_MOST_WATTS = 1000.0
"""More than one processor's package draws: how soon a counter may wrap twice is judged by it."""


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
        if self._last is not None:
            before_s, before_w = self._last
            self._joules += (at_s - before_s) * (before_w + watts) / 2
        self._last = at_s, watts

    @property
    def joules(self) -> float:
        """See `Meter.joules`."""
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
        """How long it certainly takes to wrap twice as fast as readings could tell."""
        return float("inf") if self.wraps_after is None else self.wraps_after * self.joules_per_count / _MOST_WATTS


class CounterMeter:
    """Energy that the sensor itself adds up: the sum of what one or more counters have moved on."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = tuple(counters)
        self._last: tuple[float, list[int]] | None = None
        self._joules = 0.0

    def read(self, at_s: float) -> None:
        """Read every counter; see `Meter.read`."""
        counts = [counter.read() for counter in self._counters]
        if self._last is not None:
            before_s, before = self._last
            for counter, old, new in zip(self._counters, before, counts, strict=True):
                if at_s - before_s > counter.safe_s:
                    raise SensorError("its counter was read too seldom to tell how often it wrapped")
                self._joules += _moved(old, new, wraps_after=counter.wraps_after) * counter.joules_per_count
        self._last = at_s, counts

    @property
    def joules(self) -> float:
        """See `Meter.joules`; a machine that runs uses energy, so counters that stood still are none."""
        if self._joules <= 0:
            raise SensorError("its counter does not move, as in virtual machines")
        return self._joules


def _moved(old: int, new: int, *, wraps_after: int | None) -> int:
    if new >= old:
        return new - old
    if wraps_after is None or old > wraps_after:
        raise SensorError("its counter went back")
    return new - old + wraps_after
