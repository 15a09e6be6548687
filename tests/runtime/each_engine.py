"""The engines that the runtime's own suites run on, and how one of them serves where the test names none.

A module whose tests are to hold for each has ``pytestmark = pytest.mark.usefixtures("engine")``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from smart_runtime import SmartModel
from smart_runtime.engines import AUTO

CPU, GPU = "onnxruntime-cpu", "tensorrt"
DIALECT = "10.3"
"""What JetPack 6 has; `tests/trt` goes through them all."""


def cpu_only(why: str) -> pytest.MarkDecorator:
    """Leave a test to the CPU engine; ``why`` tells the reader."""
    assert why
    return pytest.mark.parametrize("engine", [CPU], indirect=True)


@contextmanager
def serving_by_default(name: str) -> Iterator[None]:
    """Let `SmartModel.load` mean the engine ``name``, and nothing else, where it is told none."""
    defaults: dict[str, Any] = SmartModel.load.__func__.__kwdefaults__  # type: ignore[attr-defined]
    assert defaults["engine"] == AUTO
    defaults["engine"] = name
    try:
        yield
    finally:
        defaults["engine"] = AUTO


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine, and how a script is run in a process of its own that has it too.

    Attributes:
        name: What smart-edge calls it.
        python: What comes before a script on the command line.
        variables: What the environment needs.
    """

    name: str
    python: Sequence[str] = (sys.executable, "-c")
    variables: dict[str, str] = field(default_factory=dict)

    def command(self, script: str, *arguments: object) -> list[str]:
        """Return the command that runs ``script``, in which `SmartModel.load` means this engine."""
        return [*self.python, script, *map(str, arguments)]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment for it."""
        return {**os.environ, **self.variables, **more}

    def run(self, script: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run ``script`` to its end, with ``more`` in its environment."""
        command, environment = self.command(script, *arguments), self.environment(**more)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
