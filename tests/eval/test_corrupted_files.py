"""CIFAR-10-C and ImageNet-C by small files of their layout, against plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from smart_eval import EvalOptions, evaluate
from smart_eval.cli import main as smart_eval
from smart_eval.corrupted_files import KINDS, SEVERITIES, corrupted_files
from smart_eval.corruptions import table
from smart_train import ConfigError, load_checkpoint
from smart_train.accuracy import to_tensor, wilson
from smart_train.errors import DataError
from train.networks import image_set

NAMES = [kind.name for kind in KINDS]
CLASSES = ("0", "1", "2")
COUNT = 6


def darkened(kind: int, severity: int) -> np.ndarray:
    """Six test images, darker with the severity, less so with the number of the kind."""
    images = image_set().test.images[:COUNT]
    return (images * (1 - severity / (6 + kind))).astype(np.uint8)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    labels = image_set().test.labels[:COUNT]
    np.save(tmp_path / "labels.npy", np.tile(labels, SEVERITIES).astype(np.uint8))
    for number, name in enumerate(NAMES):
        np.save(tmp_path / f"{name}.npy", np.concatenate([darkened(number, s) for s in range(1, SEVERITIES + 1)]))
    np.save(tmp_path / "spatter.npy", np.zeros(3))  # published too, and not counted
    return tmp_path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    labels = image_set().test.labels[:COUNT]
    for number, name in enumerate(NAMES):
        for severity in range(1, SEVERITIES + 1):
            for place, (image, label) in enumerate(zip(darkened(number, severity), labels, strict=True)):
                folder = tmp_path / name / str(severity) / f"n0{label}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[:, :, 0]).save(folder / f"{place}.JPEG", "PNG")  # without a loss
    return tmp_path


def expected_mean(trained: Path, path: str, images: Callable[[int, int], np.ndarray]) -> float:
    net, labels = load_checkpoint(trained).net, image_set().test.labels[:COUNT]
    rights = []
    for number in range(len(NAMES)):
        for severity in range(1, SEVERITIES + 1):
            with torch.no_grad():
                scores = net.path(path)(to_tensor(torch.from_numpy(images(number, severity)))).numpy()
            rights.append((scores.argmax(axis=1) == labels).mean())
    return float(np.mean(rights))


@pytest.mark.parametrize("layout", ["arrays", "pictures"])
def test_the_mean_is_that_of_all_kinds_and_severities(
    layout: str, trained: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    measured = evaluate(trained, data=image_set(), options=EvalOptions(attack="clean", corruptions_from=folder))
    model = measured.document()
    rows = model["corruptions"]
    name = {"arrays": "CIFAR-3-C", "pictures": "ImageNet-C"}[layout]
    assert [(row["set"], row["name"], row["severity"]) for row in rows] == [
        (name, kind, severity) for kind in NAMES for severity in range(1, 6)
    ]
    mean = model["corruptions_mean"]
    assert (mean["set"], mean["kinds"], mean["severities"], mean["examples"]) == (name, 15, 5, COUNT)
    for path, found in mean["paths"].items():
        assert found["accuracy"] == pytest.approx(expected_mean(trained, path, darkened))
        assert found["accuracy"] == pytest.approx(np.mean([row["paths"][path]["accuracy"] for row in rows]))
        assert found["interval"] == list(wilson(found["accuracy"], COUNT))
    assert measured.corruptions is not None
    title, columns, cells = table([("m", measured.corruptions)])
    assert title.startswith(f"{name}, by severity")
    assert columns == ["path", "corruption", "1", "2", "3", "4", "5", "mean"]
    assert [row[1] for row in cells] == [*NAMES, "mean"] * 2, "what else is published does not count"
    assert cells[15][-1].startswith(f"{mean['paths']['clean']['accuracy']:.3f}  [")


def test_the_command_reads_them(trained: Path, data: str, arrays: Path) -> None:
    options = ["--data", data, "--attack", "clean", "--examples", "3", "--corruptions-from", str(arrays)]
    done = CliRunner().invoke(smart_eval, [str(trained), *options])
    assert done.exit_code == 0, done.output
    assert "CIFAR-3-C, by severity" in done.stdout


def test_some_examples_are_the_same_of_each(trained: Path, arrays: Path) -> None:
    options = EvalOptions(attack="clean", examples=4, corruptions_from=arrays)
    found = evaluate(trained, data=image_set(), options=options).corruptions
    assert found is not None
    assert {len(right) for one in found for right in one.right.values()} == {4}


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def saved(name: str, array: np.ndarray) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, array)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("fog.npy"), "no fog.npy in"),
        (lambda folder: [without(f"{name}.npy")(folder) for name in ("fog", "snow")], "no snow.npy, fog.npy in"),
        (without("labels.npy"), "neither labels.npy of CIFAR-10-C nor folders"),
        (saved("labels.npy", np.arange(30) % 7 % 3), "the labels of the test images 5 times over"),
        (saved("labels.npy", np.zeros((5, 6), np.uint8)), "the labels of the test images 5 times over"),
        (saved("labels.npy", np.tile([0.5, 1, 2], 10)), "the labels of the test images 5 times over"),
        (saved("labels.npy", np.tile(np.arange(6), 5)), "labels of the network's 3 classes .* got 0 to 5"),
        (saved("fog.npy", np.zeros((29, 8, 8, 1), np.uint8)), r"expected uint8 of shape \(30, 8, 8, 1\)"),
        (saved("fog.npy", np.zeros((30, 8, 8, 3), np.uint8)), r"expected uint8 of shape \(30, 8, 8, 1\)"),
        (saved("fog.npy", np.zeros((30, 8, 8, 1), np.float32)), "got float32"),
        (saved("fog.npy", np.array([{}], dtype=object)), "damaged or no .npy of plain numbers"),
        (lambda folder: (folder / "fog.npy").write_bytes(b"PK"), "damaged or no .npy of plain numbers"),
    ],
)
def test_what_is_no_whole_set_is_refused(damage: Callable[[Path], object], words: str, arrays: Path) -> None:
    damage(arrays)
    with pytest.raises(DataError, match=words):
        corrupted_files(arrays, shape=(1, 8, 8), class_names=CLASSES)


def test_a_torn_imagenet_c_is_refused(pictures: Path) -> None:
    assert len(corrupted_files(pictures, shape=(1, 8, 8), class_names=CLASSES).labels) == COUNT
    with pytest.raises(DataError, match="expected 4 folders of classes, as many as the network has"):
        corrupted_files(pictures, shape=(1, 8, 8), class_names=(*CLASSES, "3"))
    (pictures / "snow" / "3" / "n02").rename(pictures / "elsewhere")
    with pytest.raises(DataError, match=r"no folder .*n02, which other corruptions have"):
        corrupted_files(pictures, shape=(1, 8, 8), class_names=CLASSES)
    (pictures / "snow" / "3").rename(pictures / "snow" / "6")
    with pytest.raises(DataError, match="no folder snow/3 in"):
        corrupted_files(pictures, shape=(1, 8, 8), class_names=CLASSES)
    with pytest.raises(DataError, match=r"no folder .*nowhere of corrupted images"):
        corrupted_files(pictures / "nowhere", shape=(1, 8, 8), class_names=CLASSES)


def test_classes_go_by_the_names_of_the_folders_where_the_network_has_them(pictures: Path) -> None:
    backwards = corrupted_files(pictures, shape=(1, 8, 8), class_names=("n02", "n01", "n00"))
    in_order = corrupted_files(pictures, shape=(1, 8, 8), class_names=CLASSES)
    assert sorted(in_order.labels) == [0, 0, 1, 1, 2, 2]
    first = backwards.images(KINDS[0], slice(0, 1), severity=1, seed=0)
    assert first.shape == (1, 8, 8, 1)
    assert first.tobytes() in {image.tobytes() for image in darkened(0, 1)[image_set().test.labels[:COUNT] == 2]}


def test_grey_pictures_become_what_the_network_takes(pictures: Path) -> None:
    found = corrupted_files(pictures, shape=(3, 16, 16), class_names=CLASSES)
    assert found.images(KINDS[0], slice(0, 2), severity=1, seed=0).shape == (2, 16, 16, 3)


def test_both_kinds_of_corruptions_cannot_be_combined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be combined"):
        EvalOptions(corruptions=True, corruptions_from=tmp_path)
