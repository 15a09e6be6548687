"""Whether NVIDIA's driver is here, without which no GPU engine can run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from smart_devices.detection.files import Files
from smart_devices.detection.machine import CONTAINERS, Machine

_CUDA, _MANAGEMENT = "libcuda.so.1", "libnvidia-ml.so.1"
_NVIDIA = "0x10de"  # its number as a PCI vendor
_DISPLAY = "0x03"  # how the class of graphics cards and 3D controllers begins


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver.

    Attributes:
        cuda: The newest CUDA that it runs, as in ``13.0``; None when it is not there or does not say.
        reason: What is missing of it, as part of a sentence; None when nothing is.
        install: The command that mends that; None when there is nothing to mend or no command can.
    """

    cuda: str | None = None
    reason: str | None = None
    install: str | None = None


def find_driver(machine: Machine, files: Files, *, load: Callable[[str], Any] = ctypes.CDLL) -> Driver:
    """Return the driver of this machine; its libraries are loaded to see that they can be.

    Args:
        machine: This machine.
        files: Its files.
        load: Loads a shared library by name, OSError when it cannot.
    """
    devices = files.names("/dev")
    cuda, missing = None, []
    try:
        cuda = _cuda_version(load(_CUDA))
    except OSError:
        missing.append(_CUDA)
    if machine.jetson is None:  # a Jetson has the other only since L4T 36
        try:
            load(_MANAGEMENT)
        except OSError:
            missing.append(_MANAGEMENT)
        if not any(name.startswith("nvidia") or name == "dxg" for name in devices):  # dxg: under Windows (WSL 2)
            missing.append("/dev/nvidia*")
    elif not any(name.startswith(("nvhost-ctrl-gpu", "nvidia")) for name in devices):
        missing.append("/dev/nvhost-ctrl-gpu")
    if not missing:
        return Driver(cuda=cuda)
    reason = f"no NVIDIA driver that works: {_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if any(map(files.exists, CONTAINERS)):
        option = "--gpus all" if machine.jetson is None else "--runtime nvidia"
        return Driver(cuda=cuda, reason=f"{reason} (where the host has them, docker run {option} gives them)")
    if machine.jetson is None and not _has_card(files):
        return Driver(cuda=cuda, reason=f"{reason}, and no NVIDIA card is on the bus")
    return Driver(cuda=cuda, reason=reason, install="sudo ubuntu-drivers install" if machine.jetson is None else None)


def _cuda_version(library: Any) -> str | None:
    """Ask the driver for 1000 x major + 10 x minor (CUDA driver API, cuDriverGetVersion); it needs no card for that."""
    version = ctypes.c_int(0)
    try:
        failed = library.cuDriverGetVersion(ctypes.byref(version))
    except AttributeError:
        return None
    return None if failed or version.value <= 0 else f"{version.value // 1000}.{version.value % 1000 // 10}"


def _has_card(files: Files) -> bool:
    folders = (f"/sys/bus/pci/devices/{name}" for name in files.names("/sys/bus/pci/devices"))
    return any(
        files.text(f"{folder}/vendor") == _NVIDIA and (files.text(f"{folder}/class") or "").startswith(_DISPLAY)
        for folder in folders
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
