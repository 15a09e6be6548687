"""A machine with a GPU and TensorRT, both stand-ins, for tests of the whole runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cuda.stand_in import StandInDriver
from cuda.stand_in import build as driver_folder
from smart_devices import engine_rows
from smart_devices.engine_rows import EngineStatus
from smart_runtime.engines.cuda import lane_pool
from smart_runtime.engines.trt import installed as plans_here
from smart_runtime.engines.trt.build import plan_in_process
from smart_runtime.engines.trt.program import Program
from smart_runtime.engines.trt.recipe import BuildRecipe, BuiltPlan
from trt.fake_tensorrt import VARIABLE, installed

NAMES = {"tensorrt": "10.3", "tensorrt-rtx": "rtx-1.7"}
"""The dialect of each engine, where the test names none."""


def available(name: str) -> Callable[[object], EngineStatus]:
    """Return a judge that finds the engine ``name`` in place."""
    return lambda _: EngineStatus(name, available=True, version="stand-in")


@contextmanager
def gpu_machine(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, dialect: str, *, cache: Path
) -> Iterator[list[BuildRecipe]]:
    """Let the engines of TensorRT run within the block; yield the recipes of the plans that it builds, as they come.

    Plans are built in this process: `test_install_in_children.py` shows the child processes that do it in the field.
    """
    name = "tensorrt-rtx" if dialect.startswith("rtx") else "tensorrt"
    built: list[BuildRecipe] = []

    def build(model: bytes, recipe: BuildRecipe, **_: Any) -> BuiltPlan:
        built.append(recipe)
        return plan_in_process(model, recipe)

    rows = {row.name: row for row in engine_rows.ENGINES}
    judge = rows[name].judge.replace(":", ".")
    monkeypatch.setattr(judge, available(name))
    monkeypatch.setattr("smart_runtime.engines.has_library", lambda info: info.name in {name, "onnxruntime-cpu"})
    monkeypatch.setattr(plans_here, "build_plan", build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(lane_pool, "_pools", {})
    with installed(dialect):
        yield built
    left = stand_in.leaks()
    assert not left, left


def found_by_children(monkeypatch: pytest.MonkeyPatch, dialect: str) -> None:
    """Let child processes find a TensorRT and the driver without a device."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "importable"))  # a child looks where its parent does
    monkeypatch.setenv(VARIABLE, dialect)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver_folder()))


def plans_in_cache() -> list[Path]:
    """The files of the plans that this machine serves from."""
    return sorted(Path(os.environ["XDG_CACHE_HOME"], "smart-edge/engines").glob(f"{64 * '?'}/plan"))


@contextmanager
def computing_something_else(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every run within the block give scores that are off by 0.1."""
    honest: Any = Program.run
    with monkeypatch.context() as bent:
        bent.setattr(Program, "run", lambda self, *call, **how: (honest(self, *call, **how)[0] + 0.1, None))
        yield
