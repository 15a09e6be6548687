"""The stand-ins for a driver and a TensorRT, for every test here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cuda.stand_in import stand_in
from runtime.bundles import write_bundle
from trt.fake_tensorrt import UNDEFINED

__all__ = ["stand_in"]


@pytest.fixture(autouse=True)
def nothing_undefined() -> Iterator[None]:
    """Fail a test that did what NVIDIA calls undefined; one that means to clears the list."""
    UNDEFINED.clear()
    yield
    assert not UNDEFINED


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
