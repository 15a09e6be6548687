"""Which engines can run on this machine, judged in one place without importing any of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smart_devices.python_environment import find_module, version_of

if TYPE_CHECKING:
    from smart_devices.gpu_engines import Surroundings

ENGINES = ("onnxruntime-cpu",)
"""The engines that smart-edge can drive today, best first. A profile's list may name more: those come later."""

KNOWN_ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
"""The engines that can run graphs on some device, those that smart-edge cannot drive yet included, best first."""

BUILDERS = ("tensorrt-rtx-builder",)
"""What makes engines for devices without running them; it needs no GPU."""

# 1.23 is the oldest that smart-edge was tested with: the newest for the Python 3.10 of JetPack 6.
_ONNXRUNTIME_AT_LEAST = (1, 23)
# Every build of ONNX Runtime installs the module `onnxruntime`, each under a distribution name of its own.
_ONNXRUNTIME_BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_INSTALL_ONNXRUNTIME = "pip install 'smart-edge[cpu]'"


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can run on this machine.

    Attributes:
        name: The engine or builder.
        available: Whether it can run here.
        version: The version found, ``None`` when it is absent or does not say.
        reason: Why it cannot run here, as part of a sentence; ``None`` when it can.
        install: The command to mend that with first; ``None`` when there is none.
    """

    name: str
    available: bool
    version: str | None = None
    reason: str | None = None
    install: str | None = None


def engine_status(name: str, *, around: Surroundings | None = None) -> EngineStatus:
    """Say whether the engine or builder ``name`` can run here; none of them is imported.

    For ``onnxruntime-cpu`` the packages of this Python are all that is looked at, for the others the machine is too.

    Args:
        name: One of ``KNOWN_ENGINES`` and ``BUILDERS``.
        around: What decides about those that need a GPU; None to look.

    Raises:
        ValueError: ``name`` is none of them.
    """
    if name not in (*KNOWN_ENGINES, *BUILDERS):
        raise ValueError(f"expected one of {', '.join((*KNOWN_ENGINES, *BUILDERS))}, got {name!r}")
    if name == "onnxruntime-cpu":
        return _onnxruntime_cpu(name)
    from smart_devices import gpu_engines  # noqa: PLC0415  # what only a CPU needs must not wait for this

    return gpu_engines.JUDGES[name](around or gpu_engines.survey())


def _onnxruntime_cpu(name: str) -> EngineStatus:
    if find_module("onnxruntime") is None:
        return EngineStatus(
            name, available=False, reason="the Python module onnxruntime is not installed", install=_INSTALL_ONNXRUNTIME
        )
    found = next((version for build in _ONNXRUNTIME_BUILDS if (version := version_of(build))), None)
    if found is not None and _major_minor(found) < _ONNXRUNTIME_AT_LEAST:
        wanted = ".".join(str(part) for part in _ONNXRUNTIME_AT_LEAST)
        return EngineStatus(
            name,
            available=False,
            version=found,
            reason=f"onnxruntime {found} is older than {wanted}",
            install=f"{_INSTALL_ONNXRUNTIME} --upgrade",
        )
    return EngineStatus(name, available=True, version=found)


def _major_minor(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version such as ``1.23.1+cu12``; (0, 0) when there are none."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
