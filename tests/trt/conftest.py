"""The stand-ins for a driver and a TensorRT, for every test here, and models on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver, stand_in
from runtime.bundles import write_bundle
from smart_runtime import SmartModel
from smart_runtime.engines import REFERENCE_ENGINE
from trt.fake_tensorrt import UNDEFINED
from trt.gpu_arrays import IMAGES, OPTIONS, GpuLibrary
from trt.machine import gpu_machine

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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path) -> Iterator[Any]:
    """A machine with the TensorRT of JetPack 6: the recipes of what it builds, as they come."""
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path / "cache") as built:
        yield built


@pytest.fixture(scope="session")
def expected(bundle: Path) -> np.ndarray:
    """What the reference engine says of each of `IMAGES` alone, on the first path."""
    with SmartModel.load(bundle, engine=REFERENCE_ENGINE, threads=1) as model:
        return np.concatenate([model(image[None]) for image in IMAGES])


@pytest.fixture
def model(machine: Any, bundle: Path) -> Iterator[SmartModel]:  # it must be there
    """A model on the GPU."""
    with SmartModel.load(bundle, engine="tensorrt", options=OPTIONS) as loaded:
        yield loaded


@pytest.fixture
def library(model: SmartModel) -> Iterator[GpuLibrary]:  # which checks for leaks last
    """Another library on the model's GPU."""
    one = GpuLibrary()
    try:
        yield one
    finally:
        one.close()
