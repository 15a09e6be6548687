"""From a folder of one's own pictures and published weights to a prediction, by README and ``--help`` alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_own_pictures_and_published_weights_become_a_bundle_in_three_commands(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "گربه")):
        for number in range(14):
            height, width = rng.integers(70, 140, 2)
            pixels = rng.integers(0, 90, (height, width, 3))
            pixels[:, :, label] += 120
            place = tmp_path / "pets" / name / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place)
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")

    trained = run(
        "smart_train.cli",
        *("--data", "folder:pets", "--image-size", "64", "--model", "torchvision:resnet18", "--init", "resnet18.pth"),
        *("--epochs", "1", "--batch-size", "16", "--steps", "1", "-o", "pets.pt"),
        cwd=tmp_path,
    )
    assert "fc.weight and fc.bias, for its 1000 classes, start anew for 3" in trained.stderr
    run("smart_export.cli", "pets.pt", "--target", "cpu", cwd=tmp_path)
    said = run("smart_runtime.cli", "infer", "pets-cpu", "pets/cat/0.jpg", "--top", "3", "--json", cwd=tmp_path)
    (result,) = json.loads(said.stdout)["results"]
    assert {one["class"] for one in result["predictions"]} == {"cat", "dog", "گربه"}
