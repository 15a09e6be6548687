"""What ``--help`` loads: click and the options, so that it answers at once on a small board."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_PROBE = """
import importlib, json, sys
main = importlib.import_module(sys.argv[1]).main
try:
    main(sys.argv[2:])
except SystemExit as done:
    assert done.code == 0
print(json.dumps(sorted(sys.modules)))
"""
# Each takes as long to import as all that is needed, or longer.
_HEAVY = {
    *("numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "scipy", "sklearn", "lightning_fabric", "matplotlib", "PIL"),
    *("jinja2", "cryptography"),
}
_HEAVY_ON_A_BOARD = {"rich", "importlib.metadata", "importlib.resources", "smart_devices.profiles"}


@pytest.mark.parametrize(
    "command",
    [
        ["smart_devices.cli"],
        *(["smart_devices.cli", name] for name in ("list", "show", "detect", "doctor")),
        ["smart_runtime.cli"],
        ["smart_runtime.cli", "infer"],
        ["smart_runtime.cli", "info"],
        ["smart_runtime.cli", "audit"],
        ["smart_runtime.cli", "audit", "verify"],
        ["smart_runtime.bench.cli"],
        ["smart_train.cli"],
        ["smart_eval.cli"],
        ["smart_export.cli"],
        *(["smart_export.cli", name] for name in ("build", "check", "info", "keygen")),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *command, "--help"], capture_output=True, text=True, check=True
    )
    *said, modules = done.stdout.splitlines()
    assert said[0].startswith("Usage: ")
    board = command[0].startswith(("smart_devices", "smart_runtime"))
    assert set(json.loads(modules)) & (_HEAVY | _HEAVY_ON_A_BOARD if board else _HEAVY) == set()


def test_the_version_is_looked_up_when_asked_for() -> None:
    command = [sys.executable, "-m", "smart_runtime.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("smart-run, version ")
