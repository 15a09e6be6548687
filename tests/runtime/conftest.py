from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bundles import write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    return write_bundle(tmp_path / "own")
