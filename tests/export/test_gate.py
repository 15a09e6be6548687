"""The accuracy gate: its figures, its interval, what it stops, and by which images."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.command import smart_export
from reference.intervals import paired_drop
from smart_common.roles import Role
from smart_devices import resolve_target
from smart_export import ExportError, GateError, VerificationError, build_bundle
from smart_export.evidence import CALIBRATION_IMAGES, Evidence, calibrating_evidence, divide, judging_evidence
from smart_export.verify import PathGate, paired_accuracy, path_gate, require_gate
from smart_runtime.bundle.bundle import Bundle
from smart_train import Checkpoint, save_checkpoint
from smart_train.accuracy import Z_95
from smart_train.checkpoint.samples import select
from smart_train.data.images import make_image_set
from smart_train.data.load import load_data
from smart_train.data.source import Arrays

CPU = resolve_target("cpu")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_figures_and_interval(pairs: list[tuple[bool, bool]]) -> None:
    before, after = (np.array(side) for side in zip(*pairs, strict=True))
    found = paired_accuracy(before, after)
    assert (found.before, found.after, found.examples) == (before.mean(), after.mean(), len(pairs))
    assert found.drop == pytest.approx(before.mean() - after.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(paired_drop(list(before), list(after), z=Z_95), abs=1e-12)
    assert found.low <= found.high


def test_published_example() -> None:
    """1,600 voters asked twice (Agresti, Categorical Data Analysis, 2nd edition, section 10.1): 0.02 to 0.06 by Wald.

    With so many the adjustment hardly shows.
    """
    before = np.repeat([True, True, False, False], [794, 150, 86, 570])
    after = np.repeat([True, False, True, False], [794, 150, 86, 570])
    found = paired_accuracy(before, after)
    assert found.drop == pytest.approx(0.04)
    assert (found.low, found.high) == pytest.approx((0.02, 0.06), abs=0.005)


def scores(classes: list[int]) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[classes]


def test_an_image_is_robust_if_it_is_right_before_and_under_attack() -> None:
    labels = np.array([0, 1, 2, 3])
    gate = path_gate(
        labels,
        clean=(scores([0, 1, 2, 0]), scores([0, 1, 0, 3])),
        adversarial=(scores([0, 1, 0, 3]), scores([0, 0, 2, 3])),
    )
    assert (gate.clean_accuracy.before, gate.clean_accuracy.after) == (0.75, 0.75)
    assert (gate.robust_accuracy.before, gate.robust_accuracy.after) == (0.5, 0.5)
    assert gate.clean_accuracy.high > 0  # one was lost and one was gained: they do not cancel out of the interval
    assert gate.clean_accuracy.high > paired_accuracy(np.ones(4, bool), np.ones(4, bool)).high


@pytest.mark.parametrize(
    ("lost", "max_drop", "passes"),
    [(0, 0.0, True), (1, 0.0, False), (1, 0.01, True), (2, 0.01, False), (29, 0.29, True), (100, 1.0, True)],
)
@pytest.mark.parametrize("which", ["clean accuracy", "robust accuracy"])
def test_the_drop_decides(lost: int, max_drop: float, passes: bool, which: str) -> None:
    same = paired_accuracy(np.ones(100, bool), np.ones(100, bool))
    worse = paired_accuracy(np.ones(100, bool), np.arange(100) >= lost)
    gate = PathGate(worse, same) if which == "clean accuracy" else PathGate(same, worse)
    if passes:
        require_gate(gate, name="robust", max_drop=max_drop)
        return
    with pytest.raises(GateError, match=f"^the {which} of the graph 'robust' is .* points below .*95% interval"):
        require_gate(gate, name="robust", max_drop=max_drop)


def test_a_better_graph_passes() -> None:
    better = paired_accuracy(np.zeros(10, bool), np.ones(10, bool))
    require_gate(PathGate(better, better), name="clean", max_drop=0)


@pytest.mark.parametrize("points", ["-1", "101", "nan", "inf"])
def test_a_drop_that_is_none(points: str, checkpoint_file: Path, tmp_path: Path) -> None:
    done = smart_export(checkpoint_file, "--target", "cpu", "--max-drop", points, "-o", tmp_path / "b")
    assert done.returncode == 1
    assert done.stderr.startswith("error: expected a drop of 0 to 100 points, got")
    assert list(tmp_path.iterdir()) == []


def spread_(checkpoint: Checkpoint, factor: float) -> None:
    """Let one channel inside of each block carry values ``factor`` times as large, which the next layer takes back.

    Exact for a power of two in float32; in int8 the other channels fall into one step of that channel's range.
    """
    with torch.no_grad():
        for path in checkpoint.net.path_names:
            for block in checkpoint.net.path(path).network.blocks:  # type: ignore[union-attr]
                kept = int(checkpoint.net.masks(path)[0].nonzero()[0])
                for tensor in (block.bn1.weight, block.bn1.bias):
                    tensor[kept] *= factor
                if path == checkpoint.net.path_names[0]:
                    block.conv2.weight[:, kept] /= factor  # shared by the paths


@pytest.fixture
def fragile(checkpoint: Checkpoint) -> Checkpoint:
    """A network that is right in float32 and useless in int8."""
    for path in checkpoint.net.path_names:
        checkpoint.net.set_mask(path, 0, torch.arange(8) < 4)
        checkpoint.net.set_mask(path, 1, torch.arange(16) < 8)
        checkpoint.net.set_mask(path, 2, torch.arange(32) < 16)
    return checkpoint


def test_a_graph_that_loses_accuracy_leaves_the_old_bundle(fragile: Checkpoint, tmp_path: Path) -> None:
    spread_(fragile, 2.0**12)
    output = tmp_path / "bundle"
    build_bundle(fragile, output=output, target=CPU, baseline=False)
    before = Bundle.open(output).digest
    file = tmp_path / "fragile.pt"
    save_checkpoint(fragile, file)
    done = smart_export(file, "--target", "cpu", "--precision", "int8", "-o", output, "--force", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the ")
    assert re.search(
        "accuracy of the graph 'clean' is [0-9]+ points below that of its masked path, 1 are allowed", line
    )
    assert "--max-drop" in line
    assert Bundle.open(output).digest == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle", "fragile.pt"]
    allowed = build_bundle(fragile, output=output, target=CPU, baseline=False, precision="int8", max_drop=1, force=True)
    gate = allowed.paths["clean"].gate
    assert gate is not None
    assert gate.clean_accuracy.drop > 0.01


def test_what_fp16_cannot_hold_is_named(fragile: Checkpoint, tmp_path: Path) -> None:
    spread_(fragile, 2.0**20)
    with pytest.raises(
        VerificationError, match=r"the graph 'clean' gives scores that are infinite or NaN; .*take a higher one"
    ):
        build_bundle(fragile, output=tmp_path / "bundle", target=CPU, baseline=False, precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_figures_are_those_of_the_graphs_in_the_bundle(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Calibrated on one half of the samples, judged by the other: counted again here from the files."""
    from smart_runtime import SmartModel  # noqa: PLC0415  # its log is for this test only

    built = build_bundle(
        checkpoint, output=tmp_path / "b", target=CPU, precision="int8", max_drop=0.2, baseline=False, random_images=1
    )
    judging, calibrating = divide(checkpoint, precision="int8")
    assert calibrating is not None
    both = torch.cat([judging.samples.images, calibrating.samples.images])
    assert len(judging.samples.labels) == len(calibrating.samples.labels) == 128
    own = {image.numpy().tobytes() for image in checkpoint.samples.images}
    assert {image.numpy().tobytes() for image in both} == own
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.gate is not None
    assert (manifest.gate["source"], manifest.gate["images"], manifest.gate["max_drop"]) == ("samples", 128, 0.2)
    labels = judging.samples.labels.numpy()
    with SmartModel.load(tmp_path / "b") as model:
        for path in model.paths:
            model.path = path
            right = model(judging.samples.images.numpy()).argmax(axis=1) == labels
            robust = right & (model(judging.samples.adversarial[path].numpy()).argmax(axis=1) == labels)
            gate = built.paths[path].gate
            assert gate is not None
            assert (gate.clean_accuracy.after, gate.robust_accuracy.after) == (right.mean(), robust.mean())
            assert manifest.paths[path].gate == gate.record(max_drop=0.2, verified=False)


def test_the_commands_json(checkpoint_file: Path, tmp_path: Path) -> None:
    options = ["--precision", "int8", "--max-drop", "20", "--baseline", "none"]
    extra = ["--data", "digits", "--data-images", "60", "--calibration", "digits"]
    done = smart_export(checkpoint_file, "--target", "jetson-orin", *options, *extra, "-o", tmp_path / "b", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for path in ("clean", "robust"):
        for what in ("clean_accuracy", "robust_accuracy"):
            row = found["gate"][path][what]
            assert row["drop"] == pytest.approx(row["before"] - row["after"])
            assert row["low"] <= row["high"]
            assert row["examples"] == 60
    judged = found["judged_by"]
    assert judged["max_drop"] == 0.2
    assert (judged["source"], judged["attack"], judged["eps"]) == ("digits", "pgd10x1", 0.1)
    calibration = found["quantization"]["calibration"]
    assert (calibration["source"], calibration["images"]) == ("digits", CALIBRATION_IMAGES)
    assert calibration["method"] == "entropy"
    assert found["quantization"]["recipe"] == "tensorrt"
    again = smart_export("check", tmp_path / "b", "--source", checkpoint_file)
    assert again.returncode == 0, again.stderr


def test_who_judges_and_who_calibrates(checkpoint: Checkpoint) -> None:
    own, other = Evidence(checkpoint.samples), replace(Evidence(checkpoint.samples), source="digits")
    assert divide(checkpoint, precision="fp16")[0].samples is own.samples
    assert divide(checkpoint, precision="fp32", judge=other) == (other, None)
    assert divide(checkpoint, precision="int8", judge=other)[1].samples is own.samples  # type: ignore[union-attr]
    judging, calibrating = divide(checkpoint, precision="int8", calibrate=other)
    assert (judging.samples, calibrating) == (own.samples, other)
    few = replace(checkpoint, samples=select(checkpoint.samples, torch.arange(1)))
    with pytest.raises(ExportError, match="too few samples"):
        divide(few, precision="int8")


def test_each_path_is_calibrated_on_the_images_that_it_is_for(checkpoint: Checkpoint) -> None:
    evidence = Evidence(checkpoint.samples)
    clean = checkpoint.samples.images.permute(0, 3, 1, 2).numpy() / np.float32(255)
    attacked = checkpoint.samples.adversarial["robust"].permute(0, 3, 1, 2).numpy() / np.float32(255)
    for role, wanted in (
        (Role.CLEAN, clean),
        (Role.ATTACKED, attacked),
        (Role.BOTH, np.concatenate([clean, attacked])),
    ):
        np.testing.assert_allclose(evidence.calibrating("robust", role=role), wanted, atol=1e-7)


def test_images_of_the_users_are_attacked_within_eps_on_each_path(checkpoint: Checkpoint) -> None:
    data = load_data("digits")
    found = judging_evidence(data, checkpoint, images=20)
    assert (found.source, found.digest, len(found.samples.labels)) == ("digits", data.digest, 20)
    eps = checkpoint.samples.eps
    for path in ("clean", "robust"):
        change = (found.samples.adversarial[path].float() - found.samples.images.float()).abs().max() / 255
        assert 0.5 * eps < change <= eps + 1e-6
    again = judging_evidence(data, checkpoint, images=20)
    assert torch.equal(found.samples.adversarial["robust"], again.samples.adversarial["robust"])
    gentle = replace(checkpoint, samples=replace(checkpoint.samples, eps=0.0))
    everything = judging_evidence(data, gentle, images=9999)
    assert len(everything.samples.labels) == len(data.test)
    calibrating = calibrating_evidence(data, checkpoint, images=9)
    assert list(calibrating.samples.adversarial) == ["robust"]  # the clean path is calibrated on clean images
    training = {image.tobytes() for image in data.train.images}
    assert all(image.numpy().tobytes() in training for image in calibrating.samples.images)


@pytest.mark.parametrize(
    ("side", "classes", "words"),
    [(4, 10, r"expected images \(1, 8, 8\) as the network takes"), (8, 5, "expected 10 classes as the network has")],
)
def test_data_of_another_network(checkpoint: Checkpoint, side: int, classes: int, words: str) -> None:
    images, labels = np.zeros((20, side, side, 1), np.uint8), np.arange(20) % classes
    data = make_image_set(Arrays(images, labels, images, labels), kind="npz", where="x.npz")
    with pytest.raises(ExportError, match=words):
        judging_evidence(data, checkpoint, images=4)
