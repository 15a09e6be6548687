"""The power of an NVIDIA graphics card, by NVIDIA's management library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from smart_devices.errors import SensorError
from smart_devices.nvml import Gpu
from smart_devices.power.meters import Counter, CounterMeter, NoPower, PowerMeter, PowerSource

_PERIOD_S = 0.05  # of the power; the driver itself averages over a time of its own
_COUNTER_PERIOD_S = 10.0
_SETTLE_S = 1.0  # on most cards the power is an average over the last second (nvml.h, nvmlDeviceGetPowerUsage)


def find_nvml(gpu: Gpu | str) -> PowerSource | NoPower:
    """Return the energy counter of ``gpu``, or its power where it has no counter; a text says why there is no GPU."""
    if isinstance(gpu, str):
        return NoPower(reason=gpu)
    source = partial(
        PowerSource, name="nvml", measures=f"graphics card ({gpu.name}), without the host", settle_s=_SETTLE_S
    )
    if gpu.energy_mj() is not None:
        counter = Counter(read=lambda: _read(gpu.energy_mj), joules_per_count=1e-3)
        return source(period_s=_COUNTER_PERIOD_S, new_meter=lambda: CounterMeter([counter]))
    if gpu.power_mw() is not None:
        return source(period_s=_PERIOD_S, new_meter=lambda: PowerMeter(lambda: _read(gpu.power_mw) / 1000))
    return NoPower(reason=f"{gpu.name} does not tell its power (NVML)")


def _read(read: Callable[[], int | None]) -> int:
    value = read()
    if value is None:
        raise SensorError("the graphics card stopped telling its power (NVML)")
    return value
