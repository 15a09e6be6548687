"""Operating points: what an export measures, what `smart-run info` says of it, and calibration on pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from export.singles import single
from smart_export import build_bundle
from smart_runtime import SmartModel
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.cli import main as smart_run
from smart_runtime.policies import Tripwire
from smart_runtime.tripwire.operating_point import AT_CLEAN, AT_ROBUST, SILENT
from smart_runtime.tripwire.pair_scores import SCORES
from smart_runtime.tripwire.records import read_tripwire
from smart_train import Checkpoint
from smart_train.accuracy import to_tensor


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(smart_run, list(map(str, arguments)))


def test_counts_are_those_of_the_paths_on_the_samples(checkpoint: Checkpoint, bundle: Path) -> None:
    found = read_tripwire(Bundle.open(bundle).manifest)
    assert found is not None
    assert (found.clean, found.robust, set(found.points)) == ("clean", "robust", set(SCORES))
    samples, net = checkpoint.samples, checkpoint.net.eval()
    sets = {None: samples.images, AT_CLEAN: samples.adversarial["clean"], AT_ROBUST: samples.adversarial["robust"]}
    for score, point in found.points.items():
        for kind, images in sets.items():
            with torch.no_grad():
                logits = [net.path(path)(to_tensor(images)).numpy() for path in ("clean", "robust")]
            counts = np.array(point.clean if kind is None else point.attacked[kind])
            expected = np.array(point.count(logits[0], logits[1]))
            assert counts.sum() == len(images)
            # The graphs round differently: a frame on an edge may lie on its other side.
            assert np.abs(counts - expected).sum() <= 8, (score, kind)
        assert sum(map(sum, point.attacked[SILENT])) == len(samples.labels)


def test_info_says_what_to_expect_and_assumes(bundle: Path) -> None:
    said = json.loads(run("info", bundle, "--json").stdout)["tripwire"]
    assert (said["every"], said["rate_hz"], said["false_alarms_per_day"]) == (10, 30, 1)
    assert said["assumes"] == "independent frames"
    assert set(said["frames_to_alarm"]) == {AT_CLEAN, AT_ROBUST, SILENT}
    done = run("info", bundle)
    assert "1 false alarm a day assumed" in done.stdout
    assert "independent frames" in done.stdout
    late = [kind for kind, frames in said["frames_to_alarm"].items() if frames is None or frames > 500]
    assert done.stderr.count("the tripwire is") == len(late)


def test_an_export_warns_alike(tmp_path: Path, checkpoint: Checkpoint, bundle: Path) -> None:
    built = build_bundle(checkpoint, output=tmp_path / "again", target="cpu", baseline=False, random_images=8)
    warned = [sentence for sentence in built.warnings if "the tripwire is" in sentence]
    assert len(warned) == run("info", bundle).stderr.count("the tripwire is")
    assert built.outlook is not None
    assert "independent frames" in built.outlook.assumption


def test_two_checkpoints_on_the_same_samples_have_operating_points(tmp_path: Path) -> None:
    pair = {"clean": single("standard", width=8, seed=0), "robust": single("robust", width=8, seed=1)}
    common = pair["clean"].samples
    images = common.images.repeat(40, 1, 1, 1)[:64]
    for path, one in pair.items():
        own = next(iter(one.samples.adversarial))
        labels = common.labels.repeat(40)[:64]
        samples = replace(one.samples, images=images, labels=labels, adversarial={own: images})
        pair[path] = replace(one, samples=samples)
    built = build_bundle(pair, output=tmp_path / "pair", target="cpu", random_images=8, undecided="warn")
    assert built.outlook is not None
    other = replace(pair["robust"].samples, images=255 - images, adversarial={"robust": 255 - images})
    pair["robust"] = replace(pair["robust"], samples=other)
    built = build_bundle(pair, output=tmp_path / "apart", target="cpu", random_images=8, undecided="warn")
    assert built.outlook is None
    assert any("the two checkpoints carry samples of other images" in one for one in built.warnings)
    assert read_tripwire(Bundle.open(tmp_path / "apart").manifest) is None
    assert json.loads(run("info", tmp_path / "apart", "--json").stdout)["tripwire"] is None


@pytest.fixture
def pictures(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    folder = tmp_path / "quiet day"
    folder.mkdir()
    for number, image in enumerate(checkpoint.samples.images[:40].numpy()):
        Image.fromarray(image[:, :, 0]).save(folder / f"{number}.png")
    return folder


def test_calibrate_counts_the_users_frames_and_the_policy_takes_them(
    tmp_path: Path, bundle: Path, checkpoint: Checkpoint, pictures: Path
) -> None:
    file = tmp_path / "own.json"
    before = Bundle.open(bundle).digest
    done = run("calibrate", bundle, pictures, "-o", file, "--engine", "onnxruntime-cpu", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["frames"], said["digest"], said["calibration"]) == (40, before, str(file))
    assert Bundle.open(bundle).digest == before
    point = read_tripwire(Bundle.open(bundle).manifest)
    assert point is not None
    with torch.no_grad():
        images = to_tensor(checkpoint.samples.images[:40])
        logits = [checkpoint.net.eval().path(path)(images).numpy() for path in ("clean", "robust")]
    counted = json.loads(file.read_text())["clean"]["margin"]
    assert np.abs(np.array(counted) - np.array(point.points["margin"].count(logits[0], logits[1]))).sum() <= 2
    with SmartModel.load(bundle, policy=Tripwire(calibration=file)) as model:
        assert model.policy is not None
        assert model.policy.status()["threshold"] == said["tripwire"]["threshold"]  # type: ignore[attr-defined]
    assert run("calibrate", bundle, pictures, "-o", file).exit_code == 0  # its own file may be replaced
    again = run("calibrate", bundle, pictures, "-o", file)
    assert f"{file}: 40 clean frames" in again.stdout.replace("\n", "")


def test_what_calibrate_refuses(tmp_path: Path, bundle: Path, pictures: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    few, empty = tmp_path / "few", tmp_path / "empty"
    few.mkdir()
    empty.mkdir()
    Image.new("L", (8, 8)).save(few / "one.png")
    for arguments, said in (
        ((bundle, few, "-o", tmp_path / "new.json"), "expected 32 or more clean frames, got 1"),
        ((bundle, empty, "-o", tmp_path / "new.json"), "empty"),
        ((bundle, pictures, "-o", other), "notes.txt"),
        ((bundle, pictures, "-o", bundle / "own.json"), "bundle"),
    ):
        done = run("calibrate", *arguments)
        assert done.exit_code == 1, done.output
        assert said in done.stderr.replace("\n", " ")
    assert not (tmp_path / "new.json").exists()
    assert other.read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"bundle": "ab"},
        {"clean": {}},
        {"clean": {"hunch": [[40]]}},
        {"clean": {"margin": [[40, -1]]}},
        {"clean": {"margin": [40]}},
        {"clean": {"margin": [[40]]}},
        {"more": 1},
    ],
)
def test_a_bent_calibration_is_refused(tmp_path: Path, bundle: Path, pictures: Path, change: dict[str, object]) -> None:
    file = tmp_path / "own.json"
    run("calibrate", bundle, pictures, "-o", file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(Exception, match="calibrat"):
        SmartModel.load(bundle, policy=Tripwire(calibration=file))
