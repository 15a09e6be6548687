"""Ctrl-C while TensorRT's engines load, run, switch, reload and close: nothing is lost, and nothing is wrong after."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from hardened.striking import interrupt, places, struck
from runtime.bundles import as_float, expected_scores, graph_files, random_images
from runtime.fakes import Thread
from smart_runtime import BatchRange, EngineOptions, SmartModel
from smart_runtime.engines.cuda import lane_pool
from smart_runtime.memory import ON_DEMAND, RESIDENT
from trt.fake_tensorrt import UNDEFINED
from trt.machine import gpu_machine

FLOATS = as_float(random_images(3))
OPTIONS = EngineOptions(batch=BatchRange(1, 2, 2))
TIGHT = max(sum(len(data) for data in graph_files(name)) for name in ("clean", "robust"))

# A file that is struck between its opening and its owner is closed by its finalizer, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path) -> Iterator[StandInDriver]:
    """The stand-in; logging is quiet, since a strike can leave a lock of its handlers locked (docs/reliability.md)."""
    logging.disable()
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path):
        yield stand_in
        gc.collect()
    logging.disable(logging.NOTSET)


def load(bundle: Path, memory: Any) -> SmartModel:
    return SmartModel.load(bundle, engine="tensorrt", options=OPTIONS, memory=memory)


def assert_scores(model: SmartModel) -> None:
    np.testing.assert_allclose(model(FLOATS), expected_scores(model.path, FLOATS), rtol=0, atol=1e-6)


def assert_whole(model: SmartModel) -> None:
    """The scores are right in this thread and in another, on both paths, and there are as many lanes as before."""

    def use_it() -> None:
        for path in ("robust", "clean"):
            model.switch(path)
            assert_scores(model)

    assert_scores(model)
    Thread(use_it).outcome()
    (pool,) = lane_pool._pools.values()
    assert pool.lanes == OPTIONS.lanes
    assert not pool.line
    assert all(lane.clean for lane in pool._lanes)


Work = Callable[[SmartModel, Path, list[SmartModel]], Any]
WORKS: dict[str, tuple[Any, Work]] = {
    "load": (ON_DEMAND, lambda _, bundle, made: made.append(load(bundle, ON_DEMAND))),
    "run": (RESIDENT, lambda model, *_: model.run(FLOATS)),
    "switch": (ON_DEMAND, lambda model, *_: model.switch("robust")),
    "switch in place": (TIGHT, lambda model, *_: model.switch("robust")),
    "reload": (RESIDENT, lambda model, bundle, _: model.reload(bundle)),
}


@pytest.mark.parametrize("every", [61, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", WORKS)
def test_an_interrupt_at_any_place(gpu: StandInDriver, bundle: Path, work: str, every: int) -> None:
    """Whatever is kept of the exception, closing gives everything back."""
    memory, do = WORKS[work]
    made: list[SmartModel] = []
    with load(bundle, memory) as model:
        numbers = places(lambda: do(model, bundle, made))
    for at in numbers[every // 2 :: every]:
        model = load(bundle, memory)
        kept = struck(lambda: do(model, bundle, made), at=at)  # noqa: B023  # called at once
        assert_whole(model)
        for one in (model, *made):
            one.close()
        made.clear()
        assert gpu.leaks() == {}, (at, kept)
    assert len(numbers) > 50


def test_an_interrupt_as_the_library_has_done_what_it_was_asked(gpu: StandInDriver, bundle: Path) -> None:
    """What it made goes before what that needs, whatever is kept of the exception."""
    load(bundle, ON_DEMAND).close()  # builds the plan
    work = partial(load, bundle, ON_DEMAND)
    numbers = places(lambda: work().close(), function="_refusing")
    for at in numbers:
        kept = struck(work, at=at)
        assert kept is not None
        assert gpu.leaks() == {}, at
        assert not UNDEFINED, at
    assert len(numbers) > 5


@pytest.mark.parametrize("every", [31, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_place_of_close(gpu: StandInDriver, bundle: Path, every: int) -> None:
    """It closes, or may be closed once more; what the interrupt has left is given back by whoever closes next."""
    numbers = places(load(bundle, RESIDENT).close)
    for at in numbers[every // 2 :: every]:
        model = load(bundle, RESIDENT)
        kept = struck(model.close, at=at)
        model.close()
        with load(bundle, RESIDENT) as model:
            assert_whole(model)
        assert gpu.leaks() == {}, (at, kept)


@pytest.mark.parametrize("times", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_interrupts_at_any_moment_of_a_model_s_life(gpu: StandInDriver, bundle: Path, times: int) -> None:
    made: list[SmartModel] = []

    def live() -> None:
        made.append(load(bundle, ON_DEMAND))
        model = made[-1]
        model.run(FLOATS)
        model.switch("robust")
        model.reload(bundle)
        model.run(FLOATS)
        model.close()
        made.clear()

    def check() -> None:
        for model in made:
            model.close()
        made.clear()
        with load(bundle, ON_DEMAND) as model:
            assert_whole(model)
        assert gpu.leaks() == {}

    interrupt(live, apart_s=0.05 / times, times=times, after_each=check)
