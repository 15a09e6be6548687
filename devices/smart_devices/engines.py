"""Which engines can run on this machine, judged in one place without importing any of them, and what is missing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smart_common.lazy import load
from smart_devices import engine_rows
from smart_devices.engine_rows import EngineInfo, EngineStatus, engine_info, engine_names
from smart_devices.python_environment import find_module, is_older, version_of

if TYPE_CHECKING:
    from smart_devices.detection import Machine
    from smart_devices.gpu_engines import Surroundings

# 1.23 is the oldest that smart-edge was tested with: the newest for the Python 3.10 of JetPack 6.
_ONNXRUNTIME_AT_LEAST = (1, 23)
# Every build of ONNX Runtime installs the module `onnxruntime`, each under a distribution name of its own.
_ONNXRUNTIME_BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_INSTALL_ONNXRUNTIME = "pip install 'smart-edge[cpu]'"
_SELFTEST = "smart-run selftest BUNDLE --json checks this device with it, and is what to attach to an issue"


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


def has_library(info: EngineInfo) -> bool:
    """Say whether the library of an engine may be here; no means that the engine cannot run."""
    module, _, file = info.library.partition("/")
    code = find_module(module) if module else ""
    return code is not None and (not file or (Path(code).parent / file).exists())


def onnxruntime_cpu(_: Surroundings | None) -> EngineStatus:
    """Judge ONNX Runtime on the CPU by the packages of this Python."""
    name = "onnxruntime-cpu"
    if find_module("onnxruntime") is None:
        return EngineStatus(
            name, available=False, reason="the Python module onnxruntime is not installed", install=_INSTALL_ONNXRUNTIME
        )
    found = next((version for build in _ONNXRUNTIME_BUILDS if (version := version_of(build))), None)
    if found is not None and is_older(found, _ONNXRUNTIME_AT_LEAST):
        wanted = ".".join(str(part) for part in _ONNXRUNTIME_AT_LEAST)
        return EngineStatus(
            name,
            available=False,
            version=found,
            reason=f"onnxruntime {found} is older than {wanted}",
            install=f"{_INSTALL_ONNXRUNTIME} --upgrade",
        )
    return EngineStatus(name, available=True, version=found)


@dataclass(frozen=True)
class Diagnosis:
    """What this machine can run.

    Attributes:
        machine: What it is.
        python: The version of the Python that runs this.
        prefix: Where that Python or its virtual environment is.
        cuda_driver: The newest CUDA that the NVIDIA driver runs; None without one.
        engines: Every engine that is known, then what builds engines without running them.
        warnings: What works less well than it could, each a sentence with its remedy.
    """

    machine: Machine
    python: str
    prefix: str
    cuda_driver: str | None
    engines: tuple[EngineStatus, ...]
    warnings: tuple[str, ...]

    @property
    def can_run(self) -> bool:
        """Whether an engine runs here."""
        return bool(self._running)

    @property
    def next_steps(self) -> tuple[str, ...]:
        """What to do with a GPU that an engine runs on: sentences that each begin with a command; empty without one."""
        on_gpu = [info for info in self._running if info.part == "gpu"]
        steps = [
            f"smart-run install BUNDLE --engine {info.name} builds the plans of a bundle on this device and proves them"
            for info in on_gpu
            if info.has_plans
        ]
        return (*steps, _SELFTEST) if on_gpu else ()

    @property
    def _running(self) -> list[EngineInfo]:
        names = {status.name for status in self.engines if status.available}
        return [engine_info(name) for name in engine_names() if name in names]


def diagnose(around: Surroundings | None = None) -> Diagnosis:
    """Return what this machine can run.

    Args:
        around: What decides about GPU engines; None for this machine as it is.
    """
    from smart_devices import gpu_engines  # noqa: PLC0415  # it looks at the whole machine, which few need

    around = around or gpu_engines.survey()
    return Diagnosis(
        machine=around.machine,
        python=platform.python_version(),
        prefix=around.python.prefix,
        cuda_driver=around.driver.cuda,
        engines=tuple(engine_status(info.name, around=around) for info in engine_rows.ENGINES),
        warnings=gpu_engines.warnings(around),
    )
