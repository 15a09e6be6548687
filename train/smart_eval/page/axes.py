"""From figures to places in a drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """A line from ``low`` to ``high`` that is drawn from ``start`` to ``end``, with a tick at every ``step``."""

    low: float
    high: float
    step: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return where ``value`` is drawn, rounded to what a screen can show, so that equal pages have equal bytes."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[float]:
        """The values that get a mark and a number."""
        count = round((self.high - self.low) / self.step)
        return [round(self.low + i * self.step, 10) for i in range(count + 1)]


def axis(values: Sequence[float], *, start: float, end: float, ticks: int = 5, top: float | None = None) -> Axis:
    """Return an axis that holds all ``values`` between round numbers.

    Args:
        values: what is to be shown, one at least.
        start: where the lower end is drawn.
        end: where the upper end is drawn.
        ticks: about how many steps.
        top: the axis never goes above this: 1 for fractions.
    """
    low, high = min(values), max(values)
    width = max(high - low, 1e-3 * max(abs(high), 1e-6))
    rough = width / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * step for step in _STEPS if power * step >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first -= 1
    if top is not None and last * step > top:
        last = max(math.floor(top / step + 1e-9), first + 1)
    return Axis(first * step, last * step, step, start, end)
