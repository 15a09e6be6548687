"""How much power this machine draws, and how much energy a stretch of work takes."""

from __future__ import annotations

from smart_devices.power.meters import NoPower, Part, PowerSource
from smart_devices.power.sampler import PowerSampler, find_power

__all__ = ["NoPower", "Part", "PowerSampler", "PowerSource", "find_power"]
