"""How much power this machine draws, and how much energy a stretch of work takes."""

from __future__ import annotations

from smart_devices.power.find import find_power
from smart_devices.power.sampler import PowerSampler
from smart_devices.power.source import NoPower, Part, PowerSource

__all__ = ["NoPower", "Part", "PowerSampler", "PowerSource", "find_power"]
