"""The session for a lent GPU, on a machine without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import GRAPHS, graph_files, weights_of, write_bundle
from smart_runtime import Bundle, SmartModel
from smart_runtime.errors import BundleError

ROOT = Path(__file__).parents[2]
STEPS = ["device", "contracts", "paths-tiny", "storm", "memory", "contracts-sanitized"]


def light_bundles() -> ModuleType:
    """The module of that name, which lies outside of every package."""
    spec = importlib.util.spec_from_file_location("light_bundles", ROOT / "benchmarks/light_bundles.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """The folder of one light bundle."""
    light_bundles().lighten(write_bundle(tmp_path / "light/tiny"))
    return tmp_path / "light"


def session(*arguments: object, environment: dict[str, str] | None = None) -> tuple[int, dict[str, str], str]:
    """Start a session; return its status, what became of each step, and its standard error."""
    done = subprocess.run(
        ["/bin/sh", ROOT / "benchmarks/gpu_session.sh", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**(environment or os.environ), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )
    outcomes = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    return done.returncode, outcomes, done.stderr


def test_a_dry_run_goes_through_every_step_and_goes_on_where_it_was(
    light: Path, tmp_path: Path, stand_in: StandInDriver
) -> None:
    output = tmp_path / "results"
    arguments = ("--bundles", light, "--output", output, "--dry-run")
    status, outcomes, said = session(*arguments, environment=stand_in.environment())
    assert (status, said) == (0, "")
    assert list(outcomes) == STEPS
    for step in ("device", "contracts", "paths-tiny", "storm", "memory"):
        assert outcomes[step].startswith("done in "), outcomes
    records = {file.stem: json.loads(file.read_text()) for file in output.glob("*.json")}
    assert len(records["contracts"]["result"]["figures"]) > 5
    assert not records["contracts"]["result"]["failed"]
    assert all(record["environment"]["versions"]["numpy"] == np.__version__ for record in records.values())
    rows = records["paths-tiny"]["result"]["rows"]
    assert [(row["graph"], row["batch"]) for row in rows] == [
        (graph, batch) for batch in (1, 2) for graph in ("dense", "clean", "robust")
    ]
    assert all(row["largest_difference"] == 0 for row in rows)  # the engine is the reference itself
    storm = records["storm"]["result"]
    assert storm["same bits"] > 0
    assert not {key for key in storm if key == "wrong" or key.startswith("failed")}
    assert records["memory"]["result"]["resident"] > 0
    again = session(*arguments, "--minutes", "0", environment=stand_in.environment())[1]
    assert all(again[step] == "done before" for step in records)


def test_what_does_not_fit_is_skipped_and_said(light: Path, tmp_path: Path) -> None:
    status, outcomes, _ = session("--bundles", light, "--output", tmp_path / "results", "--minutes", "0")
    assert status == 0
    assert outcomes["storm"] == "skipped: it takes up to 60 s, and 0 s are left; run the session again"
    assert not list((tmp_path / "results").iterdir())


def test_a_step_that_fails_leaves_no_file(light: Path, tmp_path: Path) -> None:
    (light / "tiny/clean/model.onnx").write_bytes(b"another graph")
    command = [sys.executable, str(ROOT / "benchmarks/gpu_session.py"), "--bundles", str(light), "--dry-run"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path), "--step", "paths-tiny"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert not list(tmp_path.glob("*.json"))


def test_a_light_bundle_comes_back_with_noise_like_its_weights(light: Path, tmp_path: Path) -> None:
    module = light_bundles()
    assert not list(light.rglob("weights.bin"))
    whole = [module.restore(light / "tiny", output=tmp_path / name) for name in ("one", "two")]
    for name in GRAPHS:
        first, second = ((folder / name / "weights.bin").read_bytes() for folder in whole)
        assert first == second != graph_files(name)[1]
        values = np.frombuffer(first, np.float32)[: weights_of(name)["w"].size]
        assert np.abs(values - weights_of(name)["w"].mean()).max() <= np.sqrt(3) * weights_of(name)["w"].std() + 1e-6
    assert Bundle.open(whole[0]).digest == Bundle.open(whole[1]).digest
    with SmartModel.load(whole[0]) as model:
        assert model.paths == ("clean", "robust")


def test_noise_that_comes_out_otherwise_is_no_bundle(light: Path, tmp_path: Path) -> None:
    recipe = json.loads((light / "tiny/WEIGHTS.json").read_text())
    recipe["clean/weights.bin"]["tensors"]["w"][0] += 1
    (light / "tiny/WEIGHTS.json").write_text(json.dumps(recipe))
    with pytest.raises(BundleError):
        light_bundles().restore(light / "tiny", output=tmp_path / "whole")


def test_a_sanitizer_that_finds_something_fails_its_step(light: Path, tmp_path: Path, stand_in: StandInDriver) -> None:
    """One that runs the checks, reports an error of its own and ends as it was told to."""
    fake = tmp_path / "bin/compute-sanitizer"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nshift 2\n"$@"\necho "1 error found"\nexit 9\n')
    fake.chmod(0o755)
    output = tmp_path / "results"
    output.mkdir()
    for step in STEPS[:-1]:
        (output / f"{step}.json").write_text("{}")
    environment = stand_in.environment()
    environment["PATH"] = f"{fake.parent}{os.pathsep}{environment['PATH']}"
    status, outcomes, _ = session("--bundles", light, "--output", output, "--dry-run", environment=environment)
    assert status == 1
    assert outcomes["contracts-sanitized"].startswith("failed: ")
    assert (output / "contracts-sanitized.log").read_text() == "1 error found\n"
    assert not json.loads((output / "contracts-sanitized.failed.json").read_text())["result"]["failed"]
