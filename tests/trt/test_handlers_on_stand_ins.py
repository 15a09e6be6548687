"""Signal handlers that use TensorRT's engines in the middle of their own thread's use: an answer or one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from hardened.striking import handled, places
from runtime.bundles import as_float, expected_scores, random_images
from runtime.fakes import Thread
from smart_runtime import BatchRange, ClosedError, EngineError, EngineOptions, SmartModel
from trt.machine import gpu_machine

FLOATS = as_float(random_images(3))
EVERY = pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path) -> Iterator[StandInDriver]:
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path):
        yield stand_in


def load(bundle: Path, lanes: int = 1) -> SmartModel:
    """One lane, so that a handler in the middle of a call finds none free."""
    return SmartModel.load(bundle, engine="tensorrt", options=EngineOptions(batch=BatchRange(1, 2, 2), lanes=lanes))


def check(model: SmartModel) -> None:
    result = model.run(FLOATS)
    np.testing.assert_allclose(result.scores, expected_scores(result.path, FLOATS), rtol=0, atol=1e-6)


class Machine:
    """A model that serves, one that a handler may close, and what handlers came to."""

    def __init__(self, bundle: Path, lanes: int) -> None:
        self.bundle, self.lanes = bundle, lanes
        self.model, self.other = load(bundle, lanes), load(bundle, lanes)
        self.answers = 0

    def handler(self, do: Callable[[Machine], object]) -> None:
        try:
            do(self)
            self.answers += 1
        except EngineError as error:
            said = str(error)
        else:
            return
        assert "\n" not in said
        assert "signal handler" in said, said

    def close(self) -> None:
        self.model.close()
        self.other.close()


HANDLERS: dict[str, Callable[[Machine], object]] = {
    "calls": lambda machine: check(machine.model),
    "loads another": lambda machine: load(machine.bundle, machine.lanes).close(),
    "closes another": lambda machine: machine.other.close(),
    "switches": lambda machine: machine.model.switch("robust"),
}
WORKS: dict[str, Callable[[Machine], object]] = {
    "run": lambda machine: check(machine.model),
    "load": lambda machine: load(machine.bundle, machine.lanes).close(),
    "reload": lambda machine: machine.model.reload(machine.bundle),
    "close": lambda machine: machine.other.close(),
}


@EVERY
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("work", WORKS)
def test_a_handler_at_any_place(gpu: StandInDriver, bundle: Path, work: str, lanes: int, every: int) -> None:
    """Each in a thread of its own, which would hang alone; what was interrupted comes to its end."""
    machine = Machine(bundle, lanes)
    numbers = places(lambda: WORKS[work](machine))
    machine.close()
    answers = 0
    for at, do in zip(numbers[::every], [*HANDLERS.values()] * len(numbers), strict=False):
        machine = Machine(bundle, lanes)
        main: Any = partial(WORKS[work], machine)
        Thread(partial(handled, main, partial(machine.handler, do), at=at)).outcome()
        check(machine.model)
        machine.close()
        with pytest.raises(ClosedError):
            check(machine.model)
        assert gpu.leaks() == {}
        answers += machine.answers
    assert answers
