"""NVIDIA's driver, and which of the engines that need it can run here; nothing of them is imported."""

from __future__ import annotations

import ctypes
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_devices.detection import Machine, detect
from smart_devices.detection.machine import CONTAINERS
from smart_devices.engine_rows import EngineStatus
from smart_devices.python_environment import PythonEnvironment, is_older, this_python
from smart_devices.shared_library import needed_libraries
from smart_devices.sysfs import Files

_TENSORRT_AT_LEAST = (8, 6)  # the first with all that smart_runtime.engines.trt.library calls
_RTX_NEEDS = (7, 5)  # TensorRT-RTX documentation, support matrix: Turing and later
_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
_TENSORRT_RTX = ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx")

_INSTALL_TENSORRT, _ON_ARM = "pip install 'smart-edge[tensorrt]'", "pip install tensorrt-cu13"

_CUDA, _MANAGEMENT = "libcuda.so.1", "libnvidia-ml.so.1"
_CUDNN = "libcudnn.so.9"  # of ONNX Runtime since 1.18.1; newer ones look for it when they first need it
_JETPACK = "sudo apt install nvidia-jetpack"
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


@dataclass(frozen=True)
class Surroundings:
    """What decides whether a GPU engine can run."""

    machine: Machine
    driver: Driver
    python: PythonEnvironment


def survey() -> Surroundings:
    """Return this machine, its driver and this Python."""
    machine = detect()
    return Surroundings(machine=machine, driver=find_driver(machine, Files(Path("/"))), python=this_python())


@dataclass(frozen=True)
class _Fault:
    """One thing that is missing, and the command that mends it, if any."""

    reason: str
    install: str | None = None


def _status(name: str, version: str | None, *faults: _Fault | None) -> EngineStatus:
    found = [fault for fault in faults if fault is not None]
    if not found:
        return EngineStatus(name, available=True, version=version)
    first, *others = found
    also = [fault.reason if fault.install is None else f"{fault.reason} ({fault.install})" for fault in others]
    # What a driver is missing for, no package brings: only the first fault's command is worth running.
    return EngineStatus(
        name, available=False, version=version, reason="; ".join([first.reason, *also]), install=first.install
    )


def _no_driver(around: Surroundings) -> _Fault | None:
    driver = around.driver
    return None if driver.reason is None else _Fault(driver.reason, driver.install)


def tensorrt(around: Surroundings | None) -> EngineStatus:
    """Judge TensorRT by the driver and by what this Python finds of it."""
    around = around or survey()
    here = around.python.find("tensorrt") is not None
    version = (around.python.first_version_of(*_TENSORRT) or around.machine.software.tensorrt) if here else None
    fault = _too_old(around, version) if here else _tensorrt_module(around)
    return _status("tensorrt", version, _no_driver(around), fault)


def _too_old(around: Surroundings, version: str | None) -> _Fault | None:
    if version is None or not is_older(version, _TENSORRT_AT_LEAST):
        return None
    reason = f"TensorRT {version} is older than {'.'.join(map(str, _TENSORRT_AT_LEAST))}"
    if around.machine.jetson is not None:
        return _Fault(f"{reason}, which came with JetPack 6; flash that or newer")
    return _Fault(reason, f"{_INSTALL_TENSORRT} --upgrade")


def _tensorrt_module(around: Surroundings) -> _Fault:
    """Say why this Python has no TensorRT; on a Jetson it comes with JetPack, for the system's Python alone."""
    python, software = around.python, around.machine.software
    if around.machine.jetson is None:
        # The extra is for x86-64 alone: an Arm machine that is no Jetson takes NVIDIA's package by its own name.
        arm = around.machine.cpu.machine == "aarch64"
        return _Fault("the Python module tensorrt is not installed", _ON_ARM if arm else _INSTALL_TENSORRT)
    made_for = {path.split("/")[3].removeprefix("python"): path for path in software.tensorrt_modules}
    if not made_for:
        return _Fault("JetPack's Python module tensorrt is not installed", "sudo apt install python3-libnvinfer")
    if python.version not in made_for:
        wanted, path = next(reversed(made_for.items()))
        return _Fault(
            f"JetPack's TensorRT ({path}) is made for Python {wanted}, and this is {python.version}",
            f"/usr/bin/python{wanted} -m venv --system-site-packages .venv && .venv/bin/pip install 'smart-edge[cpu]'",
        )
    path = made_for[python.version]
    if python.system_packages:
        remedy = "sudo apt install --reinstall python3-libnvinfer"
        return _Fault(f"JetPack's TensorRT ({path}) cannot be imported", remedy)
    if python.virtual:
        return _Fault(
            f"this virtual environment does not see the system's packages, where JetPack's TensorRT is ({path})",
            f"/usr/bin/python{python.version} -m venv --system-site-packages {shlex.quote(python.prefix)}",
        )
    return _Fault(
        f"this Python ({python.prefix}) is not the system's, for which JetPack's TensorRT is installed ({path})",
        f"/usr/bin/python{python.version} -m venv --system-site-packages .venv && "
        ".venv/bin/pip install 'smart-edge[cpu]'",
    )


def _tensorrt_rtx_module(around: Surroundings) -> _Fault | None:
    if around.python.find("tensorrt_rtx") is not None:
        return None
    return _Fault("the Python module tensorrt_rtx is not installed", "pip install 'smart-edge[tensorrt-rtx]'")


def tensorrt_rtx(around: Surroundings | None) -> EngineStatus:
    """Judge TensorRT-RTX by the driver, the first card and what this Python finds of it."""
    around = around or survey()
    if around.machine.jetson is not None:
        return _status("tensorrt-rtx", None, _Fault("TensorRT-RTX is for GeForce and RTX cards, not for a Jetson"))
    too_old = None
    for card in around.machine.cards.cards[:1]:
        capability = card.compute_capability
        if capability is not None and tuple(map(int, capability.split("."))) < _RTX_NEEDS:
            needed = ".".join(map(str, _RTX_NEEDS))
            too_old = _Fault(f"{card.name} has compute capability {capability}, TensorRT-RTX needs {needed}")
    version = around.python.first_version_of(*_TENSORRT_RTX)
    return _status("tensorrt-rtx", version, _no_driver(around), too_old, _tensorrt_rtx_module(around))


def tensorrt_rtx_builder(around: Surroundings | None) -> EngineStatus:
    """Judge what builds engines for RTX cards: the library alone."""
    around = around or survey()
    version = around.python.first_version_of(*_TENSORRT_RTX)
    return _status("tensorrt-rtx-builder", version, _tensorrt_rtx_module(around))


def onnxruntime_cuda(around: Surroundings | None) -> EngineStatus:
    """Judge ONNX Runtime on an NVIDIA GPU by the driver and the CUDA provider's own library."""
    around = around or survey()
    module = around.python.find("onnxruntime")
    # The provider's own library says it best: Jetson builds carry other names and versions.
    provider = Path(module or "").parent / "capi" / "libonnxruntime_providers_cuda.so"
    has_cuda = module is not None and provider.exists()
    version = around.python.first_version_of("onnxruntime-gpu", "onnxruntime") if has_cuda else None
    fault = _missing_libraries(around, provider) if has_cuda else _onnxruntime_gpu(around)
    return _status("onnxruntime-cuda", version, _no_driver(around), fault)


def _missing_libraries(around: Surroundings, provider: Path) -> _Fault | None:
    """Say which of CUDA's libraries the provider would not find, without loading it."""
    needed = [name for name in needed_libraries(provider) if name.startswith("libcu") and name != _CUDA]
    if needed and not any(name.startswith("libcudnn.") for name in needed):
        needed.append(_CUDNN)
    packages = provider.parents[2] / "nvidia"  # where ONNX Runtime looks too (onnxruntime.preload_dlls)
    missing = [name for name in needed if not any(packages.glob(f"*/lib/{name}")) and not _loads(name)]
    if not missing:
        return None
    return _Fault(
        f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing, which its CUDA provider needs",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'" if around.machine.jetson is None else _JETPACK,
    )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _onnxruntime_gpu(around: Surroundings) -> _Fault:
    reason = "no onnxruntime with CUDA is installed"
    if around.machine.jetson is not None and not (around.machine.software.cuda or "").startswith("13."):
        return _Fault(f"{reason}, and the registry's onnxruntime-gpu is built for CUDA 13: it takes a build for Jetson")
    # Both install the module onnxruntime: one over the other leaves neither whole.
    remove = "pip uninstall -y onnxruntime && " if around.python.version_of("onnxruntime") else ""
    return _Fault(reason, f"{remove}pip install 'smart-edge[gpu]'")


def warnings(around: Surroundings) -> tuple[str, ...]:
    """Return what works less well than it could, each a sentence with its remedy."""
    python, machine = around.python, around.machine
    found = []
    if python.version_of("onnxruntime") and python.version_of("onnxruntime-gpu"):
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; keep one: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'smart-edge[gpu]'"
        )
    module, own = python.find("tensorrt"), machine.software.tensorrt_modules
    if machine.jetson is not None and module and own and not any(module.startswith(f"{path}/") for path in own):
        # The package by the plain name is empty: one of its parts has the module.
        parts = [f"{name}{part}" for name in _TENSORRT for part in ("", "-bindings", "-libs")]
        installed = " ".join(filter(python.version_of, parts)) or "tensorrt"
        found.append(f"{module} hides JetPack's TensorRT, the one for this board: pip uninstall -y {installed}")
    if machine.jetson is None and around.driver.reason is None and not machine.cards.cards:
        found.append(f"the NVIDIA driver is there, but which card this is is unknown: {machine.cards.reason}")
    return tuple(found)
