"""``smart-run install`` on a machine of stand-ins, with a child process for each build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cuda.stand_in import StandInDriver
from runtime.bundles import as_float, random_images, write_bundle
from smart_runtime import SmartModel
from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.cli import main
from smart_runtime.engines.trt.library import Library
from smart_runtime.engines.trt.tensorrt_engine import Program
from trt.machine import gpu_machine


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path) -> Any:
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path / "cache") as built:
        yield built


def test_a_bundle_is_installed_once_and_served_from_there(machine: Any, bundle: Path) -> None:
    first = json.loads(run("install", bundle, "--json").stdout)
    assert [plan["path"] for plan in first["plans"]] == ["clean", "robust"]
    assert not any(plan["was_there"] for plan in first["plans"])
    assert all(plan["proofs"] for plan in first["plans"])
    assert len(machine) == 2
    second = json.loads(run("install", bundle, "--json").stdout)
    assert all(plan["was_there"] for plan in second["plans"])
    with SmartModel.load(bundle) as model:
        assert model.engine_name == "tensorrt"
        assert model.notes == ()
        model(as_float(random_images(2)))
    assert len(machine) == 2
    assert "0 of 0" in run("install", bundle).output


def test_before_that_auto_takes_another_engine_and_says_so(machine: Any, bundle: Path) -> None:
    with SmartModel.load(bundle) as model:
        assert model.engine_name == "onnxruntime-cpu"
        assert model.notes == (
            "TensorRT 10.3.0 is here and may be faster, but this bundle is not installed for it: "
            f"smart-run install {bundle}",
        )
    assert machine == []


def test_a_plan_that_computes_something_else_is_set_aside(
    machine: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Any = Program.run
    with monkeypatch.context() as bent:
        bent.setattr(Program, "run", lambda self, *call, **how: (honest(self, *call, **how)[0] + 0.1, None))
        done = run("install", bundle, "--path", "robust")
    assert done.exit_code == 1
    assert "error: the plan of 'robust' computes something else on this device" in done.stderr
    (folder,) = (path for path in (tmp_path / "cache/smart-edge/engines").iterdir() if path.is_dir())
    assert folder.name.startswith("bad-")
    assert run("install", bundle, "--path", "robust").exit_code == 0
    assert len(machine) == 2


def test_a_plan_in_a_bundle_is_never_loaded(machine: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "engines").mkdir()
    for path in ("clean", "robust"):
        (bundle / f"engines/{path}.plan").write_bytes(b"the code of a stranger")
    write_checksums(bundle)
    loaded: list[bytes] = []
    deserialize = Library.deserialize

    def watched(self: Library, runtime: Any, plan: bytes) -> Any:
        loaded.append(plan)
        return deserialize(self, runtime, plan)

    monkeypatch.setattr(Library, "deserialize", watched)
    assert run("install", bundle).exit_code == 0
    with SmartModel.load(bundle, engine="tensorrt") as model:
        model(as_float(random_images(2)))
    assert len(loaded) >= 4
    assert all(plan.startswith(b"trtstand") for plan in loaded)
