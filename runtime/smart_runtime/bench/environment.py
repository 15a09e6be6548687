"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smart_common.version import version
from smart_devices.cpu import cpu_model
from smart_devices.detection import detect
from smart_devices.detection.machine import Jetson
from smart_devices.nvml import Gpu
from smart_devices.python_environment import version_of
from smart_devices.sysfs import read_text_or_none

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Machine and versions; ``load_average`` is over 1, 5 and 15 minutes before the measurement began.

    ``governor`` is the policy that sets the clock of a core that this process may use (Linux cpufreq), None where the
    system does not say, as in most virtual machines; ``power_mode`` is a Jetson's, by name, None on anything else.
    ``gpu`` is the graphics card that computes, or a Jetson's product, and ``gpu_driver`` its driver's version or that
    of L4T; ``library`` is what runs the graphs, with its version, and ``lanes`` how many calls it has on the GPU at
    once. Each is None where it is unknown or there is none.
    """

    cpu: str
    cores: int
    usable_cores: int
    governor: str | None
    power_mode: str | None
    load_average: tuple[float, float, float]
    system: str
    machine: str
    python: str
    versions: dict[str, str]
    gpu: str | None = None
    gpu_driver: str | None = None
    library: str | None = None
    lanes: int | None = None


def read_environment(*, packages: Sequence[str] = (), root: Path = Path("/"), gpu: Gpu | None = None) -> Environment:
    """Return what this process runs on.

    Args:
        packages: Distributions whose versions to add to those that the runtime itself uses; left out if not installed.
        gpu: The graphics card that computes, if one does; a Jetson's GPU is found without.
        root: Where ``proc`` and ``sys`` lie; another one in tests.
    """
    cores = sorted(os.sched_getaffinity(0))
    jetson = detect(root).jetson
    mode = None if jetson is None else jetson.power_mode
    name, driver = _gpu(gpu, jetson)
    return Environment(
        cpu=cpu_model(root),
        cores=os.cpu_count() or 1,
        usable_cores=len(cores),
        governor=read_text_or_none(root / f"sys/devices/system/cpu/cpu{cores[0]}/cpufreq/scaling_governor"),
        power_mode=None if mode is None else mode.name,
        load_average=os.getloadavg(),
        system=platform.system(),
        machine=platform.machine(),
        python=platform.python_version(),
        versions={
            "smart-edge": version(),
            **{name: found for name in (*_PACKAGES, *packages) if (found := version_of(name)) is not None},
        },
        gpu=name,
        gpu_driver=driver,
    )


def _gpu(card: Gpu | None, jetson: Jetson | None) -> tuple[str | None, str | None]:
    """Return the name of the GPU and what drives it."""
    if card is not None:
        return card.name, card.driver
    if jetson is not None:
        return jetson.product or jetson.model, None if jetson.l4t is None else f"L4T {jetson.l4t}"
    return None, None
