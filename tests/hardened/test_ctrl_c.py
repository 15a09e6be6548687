"""Ctrl-C while modules are imported, and programs that are finished but for a thread."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.bundles import write_bundle

# Ctrl-C comes at the moment when a module is looked for, however long what is before it takes.
_STRIKE = """
import os, signal, sys
where, command = sys.argv[1:3]
class Strike:
    def find_spec(self, name, *_):
        if name == where:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Strike())
sys.argv = [command, *sys.argv[3:]]
import smart_common.console.entry as entry
getattr(entry, command)()
"""


def struck_at(module: str, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", _STRIKE, module, command, *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    ("command", "module", "arguments"),
    [
        ("smart_edge", "click", ["--help"]),
        ("smart_edge", "smart_devices.cli", ["devices", "list"]),
        ("smart_run", "importlib", ["--help"]),
        ("smart_run", "smart_runtime.cli", ["--help"]),
        ("smart_run", "numpy", ["info", "nowhere"]),
        ("smart_bench", "smart_runtime.bench", ["--help"]),
        ("smart_devices", "smart_common.console.cli", ["--help"]),
        ("smart_train", "smart_train.cli", ["--help"]),
        ("smart_train", "torch", ["--data", "digits", "--eps", "0.3", "-o", "{}/a.pt"]),
        ("smart_eval", "click", ["--help"]),
        ("smart_export", "torch", ["info", "{}/a.pt"]),
        ("smart_export", "onnx", ["check", "{}/bundle"]),
    ],
)
def test_ctrl_c_while_modules_are_imported(command: str, module: str, arguments: list[str], tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    done = struck_at(module, command, *(argument.format(tmp_path) for argument in arguments))
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not (tmp_path / "a.pt").exists()


_FINISHED = """
import asyncio, sys
import numpy as np
from smart_runtime import SmartModel
model = SmartModel.load(sys.argv[1], threads=2)
images = np.full((1, *model.manifest.input.shape), 0.5, np.float32)
with model.using("robust"):
    asyncio.run(model.arun(images))
print(model.run(images).path, flush=True)
"""


def test_a_finished_program_ends_with_its_model_open(tmp_path: Path) -> None:
    """With threads of its engines and one of asyncio's pool, and no close."""
    start = time.monotonic()
    call = [sys.executable, "-c", _FINISHED, str(write_bundle(tmp_path / "bundle"))]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr
    assert time.monotonic() - start < 30
