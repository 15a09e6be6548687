"""What is said of a bundle that was made for another kind of device, or in a precision that gains nothing here."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.bundles import HEIGHT, WIDTH, manifest_document, ours, write_bundle
from smart_runtime import SmartModel
from smart_runtime.bundle.manifest import Manifest, parse_manifest
from smart_runtime.engines.onnxruntime import CPU
from smart_runtime.notes import notes_on

JETSON = {"name": "jetson-orin", "profile": "jetson-agx-orin-64gb", "kind": "jetson"}
MADE_FOR = "this bundle was made for jetson-orin and runs here on the CPU (onnxruntime-cpu)"
SLOWER = "its int8 graphs have the recipe of tensorrt and may run slower on this engine than fp32"


def changed(**fields: Any) -> Manifest:
    document = manifest_document()
    ours(document).update(fields)
    return parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, []),
        ({"target": JETSON}, [MADE_FOR]),
        ({"target": {"name": "rtx-4070", "profile": "rtx-4070", "kind": "gpu"}}, ["made for rtx-4070"]),
        ({"target": {"name": "jetson-orin", "profile": "jetson-agx-orin-64gb"}}, []),  # as older bundles have it
        ({"precision": "fp16"}, ["expect no gain over fp32"]),
        ({"precision": "int8", "quantization": {"recipe": "cpu"}}, []),
        ({"precision": "int8", "quantization": {"recipe": "tensorrt"}}, [SLOWER]),
        ({"precision": "int8", "quantization": {"recipe": "tensorrt"}, "target": JETSON}, [MADE_FOR, SLOWER]),
        ({"target": JETSON, "precision": "fp16"}, [MADE_FOR, "expect no gain over fp32"]),
    ],
)
def test_what_is_said(fields: dict[str, Any], words: list[str]) -> None:
    manifest = changed(**fields)
    found = notes_on(manifest, engine_name=CPU)
    assert len(found) == len(words)
    assert all(wanted in sentence for wanted, sentence in zip(words, found, strict=True))
    assert notes_on(manifest, engine_name="tensorrt") == ()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def change(document: dict[str, Any]) -> None:
        ours(document).update(target=JETSON, precision="int8", quantization={"recipe": "tensorrt"})

    return write_bundle(tmp_path_factory.mktemp("foreign") / "bundle", change=change)


def test_a_model_says_it_once_a_load(bundle: Path, foreign: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="smart_runtime"), SmartModel.load(bundle) as model:
        assert model.notes == ()
        assert caplog.records == []
        model.reload(foreign)
        assert [record.getMessage() for record in caplog.records] == list(model.notes)
        assert len(model.notes) == 2
        model.path = "robust"
    assert len(caplog.records) == 2


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"COLUMNS": "250"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_commands_say_it_once_on_standard_error_and_in_json(foreign: Path, bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frame.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(picture)
    for arguments in (["infer", str(foreign), str(picture)], ["info", str(foreign)]):
        done = run("smart_runtime.cli", *arguments, "--json")
        notes = json.loads(done.stdout)["notes"]
        assert [MADE_FOR in notes[0], SLOWER in notes[1], len(notes)] == [True, True, 2]
        assert done.stderr.splitlines() == notes
    done = run("smart_runtime.bench.cli", str(bundle), str(foreign), "--blocks", "2", "--json")
    document = json.loads(done.stdout)
    assert [entry["notes"] for entry in document["bundles"]] == [[], notes]
    assert done.stderr.splitlines() == notes


def test_in_a_comparison_of_precisions_every_label_has_its_own(foreign: Path, bundle: Path) -> None:
    done = run("smart_runtime.bench.cli", str(bundle), str(foreign), "--blocks", "2")
    lines = done.stdout.splitlines()
    assert sum("precision" in line for line in lines) == 2  # both tables
    assert any(str(bundle) in line and "robust" in line and "fp32" in line for line in lines)
    assert any(str(foreign) in line and "robust" in line and "int8" in line for line in lines)
    assert f"speed-ups are against {bundle}: dense fp32" in done.stdout
