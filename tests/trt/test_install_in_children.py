"""``smart-run install`` as it is in the field: a child process builds each plan, even where a GPU serves one alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cuda.stand_in import StandInDriver
from smart_runtime import SmartModel
from smart_runtime.cli import main
from smart_runtime.engines.cuda import device, lane_pool
from smart_runtime.engines.trt import installed as plans_here
from smart_runtime.engines.trt.build import build_plan
from smart_runtime.errors import EngineError
from trt.builds import Children, nothing_left
from trt.machine import found_by_children, plans_in_cache


@pytest.fixture
def children(machine: Any, monkeypatch: pytest.MonkeyPatch) -> Children:
    """The processes that build, on the machine of stand-ins."""
    monkeypatch.setattr(plans_here, "build_plan", build_plan)
    found_by_children(monkeypatch, "10.3")
    return Children(monkeypatch)


@pytest.fixture
def anew(stand_in: StandInDriver) -> Callable[[], None]:
    """Lets go of the GPU, as the end of a process does."""

    def end() -> None:
        for process in device._processes.values():
            process.devices.clear()
        lane_pool._pools.clear()
        assert stand_in.leaks() == {}
        stand_in.reset()

    return end


def install(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["install", *map(str, arguments)], catch_exceptions=False)


def test_each_path_is_built_by_a_child_and_proved(children: Children, bundle: Path) -> None:
    with nothing_left():
        done = install(bundle, "--json")
    assert done.exit_code == 0, done.stderr
    plans = json.loads(done.stdout)["plans"]
    assert [(plan["path"], plan["was_there"]) for plan in plans] == [("clean", False), ("robust", False)]
    assert all(proof["against"] == "onnxruntime-cpu" for plan in plans for proof in plan["proofs"])
    assert all(plan["proofs"] and plan["seconds"] > 0 for plan in plans)
    assert len(children.pids) == len(plans_in_cache()) == 2
    with SmartModel.load(bundle) as model:
        assert model.engine_name == "tensorrt"
    assert len(children.pids) == 2


def test_a_gpu_for_one_process_at_a_time_is_installed_path_by_path(
    children: Children, bundle: Path, monkeypatch: pytest.MonkeyPatch, anew: Callable[[], None]
) -> None:
    monkeypatch.setenv("STAND_IN_COMPUTE_MODE", "3")  # exclusive process
    stopped = install(bundle)
    assert stopped.exit_code == 1
    assert "serves one process at a time and this one has it, but a build is a process of its own" in stopped.stderr
    assert "`smart-run install BUNDLE --path NAME`" in stopped.stderr
    assert len(plans_in_cache()) == 1
    anew()
    assert install(bundle, "--path", "robust").exit_code == 0
    assert len(plans_in_cache()) == 2
    anew()
    with SmartModel.load(bundle) as model:
        assert model.engine_name == "tensorrt"
        assert model.notes == ()


def test_a_load_that_has_to_build_says_the_same(
    children: Children, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_COMPUTE_MODE", "3")  # exclusive process
    with pytest.raises(EngineError, match=r"this one has it, .*`smart-run install BUNDLE --path NAME`"):
        SmartModel.load(bundle, engine="tensorrt")
