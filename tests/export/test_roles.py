"""Any number of paths, each for what its role says, from what people have: files and names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export.test_fold import randomise_
from smart_common.roles import Role
from smart_export import build_bundle, check_bundle
from smart_export.evidence import Evidence, calibrating_evidence
from smart_runtime import SmartModel
from smart_runtime.bundle.bundle import Bundle
from smart_train import Attack, Checkpoint, convert, load_checkpoint, save_checkpoint
from smart_train.accuracy import to_tensor
from smart_train.architectures.build import build_network
from smart_train.checkpoint.samples import make_samples
from smart_train.data.load import load_data

ONE = {"robust": Role.BOTH}
THREE = {"calm": Role.CLEAN, "clean": Role.ATTACKED, "wary": Role.BOTH}


def checkpoint_file(folder: Path, roles: dict[str, Role]) -> Path:
    """Write a checkpoint whose paths have ``roles``; its samples are digits, attacked on each path."""
    plain = build_network("resnet8", num_classes=10, in_channels=1, arguments={"width": 8}, generator_seed=0)
    net = convert(plain, example_input=torch.zeros(2, 1, 8, 8), paths=tuple(roles), align=2, mean=[0.5], std=[0.5])
    randomise_(net, seed=1)
    digits = load_data("digits")
    images, labels = torch.from_numpy(digits.test.images[:24]), torch.from_numpy(digits.test.labels[:24])
    checkpoint = Checkpoint(
        architecture="resnet8",
        arguments={"width": 8},
        input_shape=(1, 8, 8),
        class_names=tuple(digits.class_names),
        mean=(0.5,),
        std=(0.5,),
        net=net.eval(),
        samples=make_samples(net.eval(), images, labels, attack=Attack(eps=0.1, steps=2), seed=0),
        training={"method": "trades"},
        metrics={path: {} for path in roles},
        roles=roles,
    )
    file = folder / "ckpt.pt"
    save_checkpoint(checkpoint, file)
    return file


@pytest.mark.parametrize(
    ("roles", "precision"),
    # Slow: int8 takes all the steps of fp32, and more.
    [(ONE, "int8"), pytest.param(ONE, "fp32", marks=pytest.mark.slow), (THREE, "int8")],
)
def test_one_path_or_three_go_from_a_file_to_a_checked_bundle(
    tmp_path: Path, roles: dict[str, Role], precision: str
) -> None:
    file = checkpoint_file(tmp_path, roles)
    built = build_bundle(str(file), output=str(tmp_path / "bundle"), target="cpu", precision=precision, max_drop=1)
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.package_name == "resnet8-trades"
    assert manifest.default_path == next(iter(roles))
    assert {path: graph.role for path, graph in manifest.paths.items()} == roles
    for path in roles:
        gate = built.paths[path].gate
        assert gate is not None
        assert set(gate.drops) == {"clean accuracy", "robust accuracy"}, "judged on clean and on attacked images"
    checked = check_bundle(tmp_path / "bundle", source=file)
    assert set(checked.agreements) == {*roles, "dense"}
    with SmartModel.load(tmp_path / "bundle") as model:
        assert model.path == next(iter(roles))


def test_a_record_without_a_method_is_of_the_first_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert checkpoint.training.get("method", "smart") == "smart"
    checkpoint.training.pop("method", None)
    build_bundle(checkpoint, output=tmp_path / "b", target="cpu", baseline=False)
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    assert manifest["package_name"] == "resnet8-smart"
    roles = {path: row["role"] for path, row in manifest["additional_metadata"]["smart_edge"]["paths"].items()}
    assert roles == {"clean": "clean", "robust": "attacked"}


def test_calibration_goes_by_the_role_and_not_by_the_name(tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint_file(tmp_path, THREE))
    own, samples = Evidence(loaded.samples), loaded.samples
    for path, kinds in {
        "calm": [samples.images],
        "clean": [samples.adversarial["clean"]],
        "wary": [samples.images, samples.adversarial["wary"]],
    }.items():
        wanted = to_tensor(torch.cat(kinds)).numpy()
        np.testing.assert_array_equal(own.calibrating(path, role=loaded.role(path)), wanted)
    found = calibrating_evidence(load_data("digits"), loaded, images=4)
    assert set(found.samples.adversarial) == {"clean", "wary"}, "a path for clean images needs no attack"
