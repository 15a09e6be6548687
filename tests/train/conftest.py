from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from made_once import made_once
from smart_train.training.loop import Trainer
from train.networks import image_set, tiny_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four small epochs that no test may change."""

    def make(folder: Path) -> None:
        Trainer(tiny_config(), image_set(), output=folder / "ckpt.pt").run()

    return made_once(tmp_path_factory, "trained", make) / "ckpt.pt"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`image_set` in a file, as ``--data`` names it; no test may change it."""
    found, path = image_set(), tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(
        path,
        train_images=found.train.images,
        train_labels=found.train.labels,
        test_images=found.test.images,
        test_labels=found.test.labels,
    )
    return f"npz:{path}"
