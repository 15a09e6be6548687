"""Which engines can run on this machine, judged in one place without importing any of them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from importlib import util

ENGINES = ("onnxruntime-cpu",)
"""The engines that smart-edge can drive today, best first. A profile's list may name more: those come later."""

# 1.23 is the oldest that smart-edge was tested with: the newest for the Python 3.10 of JetPack 6.
_ONNXRUNTIME_AT_LEAST = (1, 23)
# Every build of ONNX Runtime installs the module `onnxruntime`, each under a distribution name of its own.
_ONNXRUNTIME_BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_INSTALL_ONNXRUNTIME = "pip install 'smart-edge[cpu]'"


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can run on this machine.

    Attributes:
        name: The engine, one of ``ENGINES``.
        available: Whether it can run here.
        version: The version found, ``None`` when it is absent or does not say.
        reason: Why it cannot run here, as part of a sentence; ``None`` when it can.
        install: The command that mends that; ``None`` when there is nothing to mend.
    """

    name: str
    available: bool
    version: str | None = None
    reason: str | None = None
    install: str | None = None


def engine_status(name: str) -> EngineStatus:
    """Say whether the engine ``name`` can run here; nothing is imported, so the answer takes well under a millisecond.

    Raises:
        ValueError: ``name`` is not one of ``ENGINES``.
    """
    if name not in ENGINES:
        raise ValueError(f"expected one of {', '.join(ENGINES)}, got {name!r}")
    spec = util.find_spec("onnxruntime")
    # A folder that merely has the name (what an interrupted uninstall leaves) is found too, but has no origin.
    if spec is None or spec.origin is None:
        return EngineStatus(
            name, available=False, reason="the Python module onnxruntime is not installed", install=_INSTALL_ONNXRUNTIME
        )
    found = _version_of(_ONNXRUNTIME_BUILDS)
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


def _version_of(distributions: tuple[str, ...]) -> str | None:
    from importlib import metadata  # noqa: PLC0415  # a fifth of the time that importing smart_runtime takes

    for distribution in distributions:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return None


def _major_minor(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version such as ``1.23.1+cu12``; (0, 0) when there are none."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
