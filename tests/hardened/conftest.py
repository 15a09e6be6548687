"""The oldest checkpoint that is kept, and a copy of its bundle to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from smart_train import Checkpoint, load_checkpoint

FIRST = Path(__file__).parents[1] / "formats/first"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(FIRST / "channel.pt")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIRST / "channel-bundle", tmp_path / "bundle"))
