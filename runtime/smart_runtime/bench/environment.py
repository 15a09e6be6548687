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
from smart_devices.python_environment import version_of
from smart_devices.sysfs import read_text_or_none

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Machine and versions; ``load_average`` is over 1, 5 and 15 minutes before the measurement began.

    ``governor`` is the policy that sets the clock of a core that this process may use (Linux cpufreq), None where the
    system does not say, as in most virtual machines; ``power_mode`` is a Jetson's, by name, None on anything else.
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


def read_environment(*, packages: Sequence[str] = (), root: Path = Path("/")) -> Environment:
    """Return what this process runs on.

    Args:
        packages: Distributions whose versions to add to those that the runtime itself uses; left out if not installed.
        root: Where ``proc`` and ``sys`` lie; another one in tests.
    """
    cores = sorted(os.sched_getaffinity(0))
    return Environment(
        cpu=cpu_model(root),
        cores=os.cpu_count() or 1,
        usable_cores=len(cores),
        governor=read_text_or_none(root / f"sys/devices/system/cpu/cpu{cores[0]}/cpufreq/scaling_governor"),
        power_mode=_power_mode(root),
        load_average=os.getloadavg(),
        system=platform.system(),
        machine=platform.machine(),
        python=platform.python_version(),
        versions={
            "smart-edge": version(),
            **{name: found for name in (*_PACKAGES, *packages) if (found := version_of(name)) is not None},
        },
    )


def _power_mode(root: Path) -> str | None:
    jetson = detect(root).jetson
    return None if jetson is None or jetson.power_mode is None else jetson.power_mode.name
