"""What can say how much power this machine draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from smart_devices.power.meters import Meter

Part: TypeAlias = Literal["cpu", "gpu"]
"""What of the machine runs the network."""

SourceName: TypeAlias = Literal["ina3221", "ina238", "nvml", "rapl"]


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
