"""The stranger's six additions: each recipe of CONTRIBUTING.md, done to a copy of the packages and used by commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from extending.recipes import PACKAGES, ROOT, Recipe, recipe

Follow = Callable[[str], tuple[Recipe, list[str]]]


@pytest.fixture
def clone(tmp_path: Path, checkpoint_file: Path, bundle: Path) -> Path:
    """A copy of the packages, with what `make demo` leaves."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(bundle, tmp_path / "demo-out/bundle")
    shutil.copy(checkpoint_file, tmp_path / "demo-out/ckpt.pt")
    return tmp_path


def run(command: str, clone: Path) -> str:
    """Run a command of a recipe as its reader does, with the packages of ``clone``; return its standard output."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(str(clone / package) for package in PACKAGES),
    }
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def follow(clone: Path) -> Follow:
    """Do what a recipe says, to the last command; return it and what each command printed."""

    def follow(title: str) -> tuple[Recipe, list[str]]:
        found = recipe(title)
        assert len(found.touched) <= 2, "an addition is a file and a row"
        found.apply(clone)
        return found, [run(command, clone) for command in found.commands]

    return follow


def test_an_engine_is_listed_runs_is_measured_and_checked(follow: Follow, clone: Path) -> None:
    _, (doctor, _, bench, check) = follow("An engine")
    assert "one-thread" in doctor
    assert "one-thread" in bench
    assert check
    assert "one-thread" in run("smart-run infer --help", clone)


@pytest.mark.slow
def test_a_method_with_an_option_is_trained_evaluated_exported_and_run(follow: Follow) -> None:
    _, (described, *_, info) = follow("A training method")
    assert "--set weight=0.5" in described
    assert "robust" in info


@pytest.mark.slow
def test_an_attack_is_measured_resumed_and_shown(follow: Follow, clone: Path) -> None:
    _, (first, _, on_bundle) = follow("An attack")
    (model,) = json.loads(first)["models"]
    assert model["attacks"][0]["draws"] == 4
    kept = [json.loads(line) for line in (clone / "corners.jsonl").read_text().splitlines()]
    assert sum(record.get("attack") == "corners" for record in kept) == len(model["paths"]), "resumed, not repeated"
    assert "4 random corners" in (clone / "corners.html").read_text()
    assert "corners" in on_bundle


@pytest.mark.slow
def test_a_mask_pattern_is_trained_exported_and_run(follow: Follow, clone: Path) -> None:
    _, (help_page, *_, info) = follow("A mask pattern")
    assert "block4" in help_page
    assert "robust" in info
    graph = onnx.load(clone / "block4/clean/model.onnx")
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer if len(tensor.dims) == 4]
    masked = [weight for weight in weights if weight.shape[1] % 4 == 0]
    assert masked
    for weight in masked:
        kept = (weight != 0).swapaxes(1, -1).reshape(-1, 4).sum(axis=1)
        assert set(kept.tolist()) <= {0, 4}, "torn blocks"
        assert (kept > 0).mean() == pytest.approx(0.25, abs=1 / len(kept))


def test_a_policy_switches(follow: Follow) -> None:
    _, (printed,) = follow("A switch policy")
    assert printed.splitlines() == ["clean", "clean", "clean", "robust", "3 unsure calls in a row"]


@pytest.mark.slow
def test_a_device_is_a_target_from_its_file_and_by_its_name(follow: Follow, clone: Path) -> None:
    _, (_, of_file, _, _, listed, shown) = follow("A device profile")
    assert "my-board" in of_file
    assert json.loads((clone / "my-board/manifest.json").read_text())["additional_metadata"]["smart_edge"]["target"]
    assert "my-board" in listed
    assert "my-board" in shown
