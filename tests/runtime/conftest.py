from __future__ import annotations

from pathlib import Path

import pytest

from cuda.stand_in import stand_in
from runtime.bundles import write_bundle

__all__ = ["bundle", "own_bundle", "stand_in"]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    return write_bundle(tmp_path / "own")
