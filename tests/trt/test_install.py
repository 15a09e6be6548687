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
from smart_runtime.cli import main
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
