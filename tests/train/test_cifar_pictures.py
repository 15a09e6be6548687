"""CIFAR-10 as a folder of 58,000 pictures, where there is one: no test fetches or carries it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from smart_train.cli import main as smart_train
from smart_train.data.load import load_data

FOLDER = os.environ.get("SMART_EDGE_CIFAR10_FOLDER")

pytestmark = pytest.mark.skipif(
    FOLDER is None,
    reason="needs CIFAR-10 as pictures (train/CLASS/*.jpg, test/CLASS/*.jpg) in SMART_EDGE_CIFAR10_FOLDER",
)


def test_the_pictures_and_an_npz_of_them_give_the_same_history_to_the_bit(tmp_path: Path) -> None:
    data = load_data(f"folder:{FOLDER}")
    assert (data.shape, len(data.class_names)) == ((3, 32, 32), 10)
    # The training images in the folder's order again: class by class, those held out for validation among them.
    whole = load_data_in_order(FOLDER or "")
    np.savez(tmp_path / "cifar.npz", **whole)  # type: ignore[arg-type]  # numpy takes arrays by any name
    histories = []
    for i, spec in enumerate((f"folder:{FOLDER}", f"npz:{tmp_path / 'cifar.npz'}")):
        place = tmp_path / str(i)
        place.mkdir()
        options = ["--model-arg", "width=4", "--align", "1", "--epochs", "2", "--train-images", "256", "--flip"]
        few = ["--test-images", "50", "--crop-pad", "4", "--steps", "1"]
        done = CliRunner().invoke(smart_train, ["--data", spec, *options, *few, "-o", str(place / "ckpt.pt")])
        assert done.exit_code == 0, done.output
        histories.append((place / "ckpt.history.csv").read_bytes())
    assert histories[0] == histories[1]


def load_data_in_order(folder: str) -> dict[str, np.ndarray]:
    """Read the pictures with Pillow alone."""
    from PIL import Image  # noqa: PLC0415  # only where the pictures are

    classes = sorted(path.name for path in (Path(folder) / "train").iterdir())
    arrays: dict[str, np.ndarray] = {"class_names": np.array(classes)}
    for part in ("train", "test"):
        files = [(f, i) for i, name in enumerate(classes) for f in sorted((Path(folder) / part / name).iterdir())]
        arrays[f"{part}_images"] = np.stack([np.asarray(Image.open(file)) for file, _ in files])
        arrays[f"{part}_labels"] = np.array([label for _, label in files])
    return arrays
