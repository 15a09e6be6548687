from __future__ import annotations

from pathlib import Path

import pytest

from smart_train.training import Trainer
from train.networks import image_set, tiny_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four small epochs that no test may change."""
    output = tmp_path_factory.mktemp("trained") / "ckpt.pt"
    Trainer(tiny_config(), image_set(), output=output).run()
    return output
