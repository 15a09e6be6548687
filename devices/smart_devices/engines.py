"""Which engines can run on this machine, judged in one place without importing any of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from smart_common.lazy import load
from smart_devices.engine_rows import EngineStatus, engine_info
from smart_devices.python_environment import find_module, version_of

if TYPE_CHECKING:
    from smart_devices.gpu_engines import Surroundings

# 1.23 is the oldest that smart-edge was tested with: the newest for the Python 3.10 of JetPack 6.
_ONNXRUNTIME_AT_LEAST = (1, 23)
# Every build of ONNX Runtime installs the module `onnxruntime`, each under a distribution name of its own.
_ONNXRUNTIME_BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_INSTALL_ONNXRUNTIME = "pip install 'smart-edge[cpu]'"


def engine_status(name: str, *, around: Surroundings | None = None) -> EngineStatus:
    """Say whether the engine or builder ``name`` can run here; its library is not imported.

    For ``onnxruntime-cpu`` the packages of this Python are all that is looked at, for the others the machine is too.

    Args:
        name: The name of a row in `smart_devices.engine_rows.ENGINES`.
        around: What decides about those that need a GPU; None to look.

    Raises:
        UnknownEngineError: No engine is called that.
    """
    status: EngineStatus = load(engine_info(name).judge)(around)
    return status


def onnxruntime_cpu(_: Surroundings | None) -> EngineStatus:
    """Judge ONNX Runtime on the CPU by the packages of this Python."""
    name = "onnxruntime-cpu"
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
