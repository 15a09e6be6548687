"""What this machine can run, what is missing and how to get it: the facts behind ``smart-devices doctor``."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from smart_devices import engine_rows
from smart_devices.detection import Machine
from smart_devices.engine_rows import EngineStatus, engine_names
from smart_devices.engines import engine_status
from smart_devices.gpu_engines import Surroundings, survey, warnings


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
        """Whether an engine that smart-edge can drive runs here."""
        return any(status.available and status.name in engine_names(driven=True) for status in self.engines)


def diagnose(around: Surroundings | None = None) -> Diagnosis:
    """Return what this machine can run.

    Args:
        around: What decides about GPU engines; None for this machine as it is.
    """
    around = around or survey()
    return Diagnosis(
        machine=around.machine,
        python=platform.python_version(),
        prefix=around.python.prefix,
        cuda_driver=around.driver.cuda,
        engines=tuple(engine_status(info.name, around=around) for info in engine_rows.ENGINES),
        warnings=warnings(around),
    )
