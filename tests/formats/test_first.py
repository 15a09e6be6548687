"""What version 0.1 wrote before networks had methods and roles goes on being read, measured, exported and run.

The files in ``first`` were made by the commit before that, bb5c395: resnet8 of width 8 on digits, two epochs, seed 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from smart_common.roles import Role
from smart_devices import resolve_target
from smart_export import build_bundle
from smart_runtime import Bundle, SmartModel
from smart_train import load_checkpoint
from smart_train.accuracy import accuracy
from smart_train.data.load import load_data

FIRST = Path(__file__).parent / "first"


@pytest.mark.parametrize("name", ["channel.pt", "two-four.pt"])
def test_a_first_checkpoint_opens_and_measures_as_it_did(name: str) -> None:
    checkpoint = load_checkpoint(FIRST / name)
    assert checkpoint.net.path_names == ("clean", "robust")
    assert [checkpoint.role(path) for path in checkpoint.net.path_names] == [Role.CLEAN, Role.ATTACKED]
    test = load_data("digits").test
    for path in checkpoint.net.path_names:
        found = accuracy(checkpoint.net.path(path), test, attack=None, generator=torch.Generator())
        recorded = checkpoint.metrics[path]["clean_accuracy"]
        assert abs(found.value - recorded) <= 1 / len(test), f"{path}: {found.value} where {recorded} was recorded"


@pytest.mark.parametrize(("name", "bundle"), [("channel.pt", "channel-bundle")])
def test_a_first_checkpoint_exports_to_the_same_graphs(name: str, bundle: str, tmp_path: Path) -> None:
    built = build_bundle(
        load_checkpoint(FIRST / name), output=tmp_path / "bundle", target=resolve_target("jetson-orin")
    )
    for path in ("clean", "robust", "dense"):
        for file in ("model.onnx", "weights.bin"):
            ours, theirs = ((root / path / file).read_bytes() for root in (built.bundle, FIRST / bundle))
            assert ours == theirs, f"{path}/{file} differs from what the first version wrote"


@pytest.mark.parametrize("bundle", ["channel-bundle", "int8-bundle"])
def test_a_first_bundle_opens_and_answers(bundle: str) -> None:
    checkpoint = load_checkpoint(FIRST / "channel.pt")
    images = checkpoint.samples.images.numpy()
    Bundle.open(FIRST / bundle).verify()
    with SmartModel.load(FIRST / bundle) as model:
        for path in model.paths:
            model.path = path
            with torch.no_grad():
                expected = checkpoint.net.path(path)(
                    torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
                ).numpy()
            same = np.mean(model(images).argmax(axis=1) == expected.argmax(axis=1))
            # Two epochs leave narrow margins, which int8 crosses on one image in ten; a chance network agrees on one.
            assert same >= (1 if bundle == "channel-bundle" else 0.8), f"{path}: {same:.1%} of the classes agree"
