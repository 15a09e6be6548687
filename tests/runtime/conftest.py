from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuda.stand_in import StandInDriver, stand_in
from runtime.bundles import write_bundle
from runtime.each_engine import CPU, DIALECT, GPU, EngineUnderTest, serving_by_default
from trt.fake_tensorrt import environment
from trt.machine import gpu_machine

__all__ = ["bundle", "engine", "own_bundle", "stand_in"]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    return write_bundle(tmp_path / "own")


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all tests, so that each plan is built once."""
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(params=[CPU, GPU])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, plans: Path) -> Iterator[EngineUnderTest]:
    """The engine that serves where a test names none: the CPU's, then TensorRT over the stand-ins."""
    if request.param == CPU:
        with serving_by_default(CPU):
            yield EngineUnderTest(CPU)
        return
    stands_in: StandInDriver = request.getfixturevalue("stand_in")
    with gpu_machine(monkeypatch, stands_in, DIALECT, cache=plans), serving_by_default(GPU):
        variables = environment(DIALECT, stands_in.environment())
        yield EngineUnderTest(GPU, (sys.executable, "-m", "trt.gpu_process"), variables)
