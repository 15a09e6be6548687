"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from smart_devices.version import version

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Machine and versions; ``load_average`` is over 1, 5 and 15 minutes before the measurement began."""

    cpu: str
    cores: int
    usable_cores: int
    load_average: tuple[float, float, float]
    system: str
    machine: str
    python: str
    versions: dict[str, str]


def read_environment() -> Environment:
    """Return what this process runs on."""
    return Environment(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)),
        load_average=os.getloadavg(),
        system=platform.system(),
        machine=platform.machine(),
        python=platform.python_version(),
        versions={"smart-edge": version(), **_versions(("numpy", "onnxruntime", "onnxruntime-gpu"))},
    )


def _cpu_model() -> str:
    """Return the CPU's name; Arm boards have none in cpuinfo, there the machine type must do."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    installed = {name: _version(name) for name in names}
    return {name: found for name, found in installed.items() if found is not None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
