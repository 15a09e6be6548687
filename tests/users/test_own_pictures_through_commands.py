"""A folder of one's own, of mixed sizes and without a test part, from pictures to predictions by commands alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from smart_eval.cli import main as smart_eval
from smart_export.cli import main as smart_export
from smart_train.checkpoint.format import load_checkpoint
from smart_train.cli import main as smart_train
from smart_train.data.augment import Augmentation
from smart_train.training.config import TrainConfig
from smart_train.training.loop import Trainer
from train.networks import different, image_set, tiny_config

CLASSES = ("\u0645\u06cc\u200c\u0634\u0648\u062f", "dog")
SMALL = [
    "--model-arg",
    "width=8",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--steps",
    "1",
    "--eps",
    "0.1",
    "--test-images",
    "4",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright pictures, no two of one size, and what else lies in such folders."""
    root, generator = tmp_path_factory.mktemp("own") / "pictures", np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name / "day 2").mkdir(parents=True)
        for i in range(20):
            levels = generator.integers(0, 100, (20 + i, 45 - i, 3)) + 150 * label
            Image.fromarray(levels.astype(np.uint8)).save(root / name / ("day 2" if i % 3 else "") / f"{i}.png")
        (root / name / "._0.png").write_bytes(b"")
        (root / name / "notes.heic").write_bytes(b"")
    (root / CLASSES[0] / "broken.jpg").write_bytes(b"")
    return root


def invoke(command: object, *arguments: str | Path) -> Result:
    result = CliRunner().invoke(command, list(map(str, arguments)))  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("trained") / "ckpt.pt"
    data = ["--data", f"folder:{pictures}", "--image-size", "16", "--max-broken", "1"]
    return output, invoke(smart_train, *data, *SMALL, "-o", output)


def test_training_says_what_it_did_with_the_pictures(trained: tuple[Path, Result], pictures: Path) -> None:
    output, result = trained
    said = result.stderr
    for words in (
        f"note: not read in {pictures}: 2 hidden, 2 .heic;",
        "8 of 41 pictures, every class in its proportion, are held out for test",
        f"warning: broken and left out: {pictures / CLASSES[0] / 'broken.jpg'}",
        "note: broken pictures left out: 1",
    ):
        assert said.count(words) == 1, said
    record = load_checkpoint(output).training
    assert record["augmentation"] == {"crop_pad": 0, "flip": False, "resized_crop": True}
    assert len(record["data"]["notes"]) == 2
    assert "broken.jpg" not in json.dumps(record)


def test_smart_eval_reads_the_folder_at_the_size_of_the_network(trained: tuple[Path, Result], pictures: Path) -> None:
    output, _ = trained
    data = ["--data", f"folder:{pictures}", "--max-broken", "1"]
    result = invoke(smart_eval, output, *data, "--attack", "clean", "--no-threats", "--no-checks", "--json")
    assert json.loads(result.stdout)["models"][0]["examples"] == 8
    assert "not the very images" not in result.stderr
    assert "held out for test" in result.stderr


@pytest.mark.slow
def test_smart_export_reads_the_folder_at_the_size_of_the_network(
    trained: tuple[Path, Result], pictures: Path, tmp_path: Path
) -> None:
    output, _ = trained
    data, bundle = ["--data", f"folder:{pictures}", "--max-broken", "1"], tmp_path / "bundle"
    result = invoke(smart_export, output, *data, "--target", "cpu", "-o", bundle, "--max-drop", "100", "--json")
    assert json.loads(result.stdout)
    assert "held out for test" in result.stderr
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))["additional_metadata"]["smart_edge"]
    assert manifest["class_names"] == sorted(CLASSES)
    assert manifest["training"]["data"]["notes"]


def test_the_message_about_sizes_names_the_option(pictures: Path, tmp_path: Path) -> None:
    data = ["--data", f"folder:{pictures}", "--max-broken", "1", "--no-cache"]
    result = CliRunner().invoke(smart_train, [*data, "-o", str(tmp_path / "ckpt.pt")])
    assert result.exit_code == 1
    assert "differ in size" in result.stderr
    assert "--image-size" in result.stderr
    assert not (tmp_path / "ckpt.pt").exists()


@pytest.mark.parametrize("size", ["0x", "big", "1x2x3", "-5", "\u0663\u0662", "99999999999"])
def test_a_misspelt_image_size_is_wrong_use(size: str) -> None:
    result = CliRunner().invoke(smart_train, ["--image-size", size])
    assert result.exit_code == 2
    assert "is no image size; give 224, or 192x256 for height and width" in " ".join(result.stderr.split())


def with_parts(**changes: object) -> TrainConfig:
    return tiny_config(augmentation=Augmentation(resized_crop=True, flip=True), **changes)


@pytest.mark.slow
def test_a_training_on_random_parts_is_resumed_to_the_bit(tmp_path: Path) -> None:
    whole = Trainer(with_parts(), image_set(), output=tmp_path / "whole.pt").run()

    def stop(report: object) -> None:
        raise KeyboardInterrupt

    first = Trainer(with_parts(), image_set(), output=tmp_path / "parts.pt")
    with pytest.raises(KeyboardInterrupt):
        first.run(on_epoch=stop)
    again = Trainer(with_parts(), image_set(), output=tmp_path / "parts.pt", resume=True).run()
    nets = [load_checkpoint(result.checkpoint).net for result in (whole, again)]
    assert not different(nets[0].state_dict(), nets[1].state_dict())


def test_old_trainings_are_resumed_since_their_record_has_no_random_parts() -> None:
    assert "resized_crop" not in tiny_config().record()["augmentation"]


def test_random_parts_are_parts_of_the_image_at_its_size() -> None:
    ramp = torch.arange(32).mul(8).to(torch.uint8)
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)], dim=-1)  # columns and rows, in eighths
    found = Augmentation(resized_crop=True).apply(
        image.expand(2000, -1, -1, -1), generator=torch.Generator().manual_seed(0)
    )
    assert found.shape == (2000, 32, 32, 2)
    assert found.is_contiguous()
    across = (found[:, 0, -1, 0].float() - found[:, 0, 0, 0]) / 8 + 1  # pixels of the image that the part shows
    down = (found[:, -1, 0, 1].float() - found[:, 0, 0, 1]) / 8 + 1
    area, ratio = across * down / 32**2, across / down
    assert 0.3 < area.min() < 0.4
    assert area.max() > 0.95
    assert area.mean() == pytest.approx(0.66, abs=0.03)
    assert 0.7 < ratio.min() < ratio.max() < 1.45
    assert ratio.log().mean() == pytest.approx(0, abs=0.02)
    assert (found[..., 0].float().std(dim=1) < 1).all(), "straight, not turned"
    corners = found[:, 0, 0].float() / 8
    assert corners.min() == 0
    assert corners.mean(dim=0).tolist() == pytest.approx(
        [float(32 - side.mean()) / 2 for side in (across, down)], abs=0.3
    )


@pytest.mark.slow
def test_names_that_the_terminal_lacks_end_no_training(pictures: Path, tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        return done.stdout.decode("ascii")

    data, output = ["--data", f"folder:{pictures}", "--max-broken", "1"], tmp_path / CLASSES[0]
    output.mkdir()
    run("smart_train.cli", *data, "--image-size", "16", *SMALL, "-o", output / "ckpt.pt")
    measure = ["--attack", "clean", "--no-threats", "--no-checks"]
    run("smart_eval.cli", output / "ckpt.pt", *data, *measure, "--report", output / "page.html")
    run("smart_export.cli", output / "ckpt.pt", "--target", "cpu", "-o", output / "bundle", "--max-drop", "100")
    run("smart_export.cli", "check", output / "bundle")
    run("smart_export.cli", "info", output / "ckpt.pt")
    run("smart_runtime.cli", "info", output / "bundle")
    said = run("smart_runtime.cli", "infer", output / "bundle", pictures / CLASSES[0] / "0.png", "--top", "2")
    assert ascii(CLASSES[0])[1:-1] in said
