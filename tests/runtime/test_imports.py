"""What importing the runtime loads: next to nothing."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import smart_runtime

HEAVY = ["torch", "onnx", "onnxruntime", "PIL", "matplotlib", "tensorrt", "cryptography"]
COMMAND_LINE = ["click", "rich"]
_PROBE = "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"

MODULES = ["smart_runtime", *(m.name for m in pkgutil.walk_packages(smart_runtime.__path__, "smart_runtime."))]


def loaded_by(module: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", _PROBE, module], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_loads_no_engine_and_no_command_line() -> None:
    assert loaded_by("smart_runtime").isdisjoint(HEAVY + COMMAND_LINE)


@pytest.mark.parametrize("module", ["smart_runtime.pictures", "smart_runtime.bench.plot", "smart_runtime.bench.worker"])
def test_optional_libraries_are_loaded_at_use_only(module: str) -> None:
    assert loaded_by(module).isdisjoint(HEAVY + COMMAND_LINE)


@pytest.mark.parametrize("module", ["smart_runtime.cli", "smart_runtime.bench.cli"])
def test_command_lines_start_without_heavy_libraries(module: str) -> None:
    assert loaded_by(module).isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["smart_runtime", "smart_runtime.policies", "smart_runtime.cli"])
def test_what_help_needs_waits_for_no_numpy(module: str) -> None:
    assert "numpy" not in loaded_by(module)


def test_every_public_name_is_found_at_its_first_use() -> None:
    assert all(getattr(smart_runtime, name).__name__.split(".")[-1] == name for name in smart_runtime.__all__)
    with pytest.raises(AttributeError, match="module 'smart_runtime' has no attribute 'SmartModle'"):
        _ = smart_runtime.SmartModle


def test_every_module_is_typed_and_walked() -> None:
    assert "smart_runtime.bench.switching" in MODULES  # so that a forgotten __init__.py does not empty the list
    assert "smart_runtime.engines.onnxruntime" in MODULES
