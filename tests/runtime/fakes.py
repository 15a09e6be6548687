"""Engines that do what a test tells them, in place of ONNX Runtime's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import smart_runtime.serving
from runtime.bundles import CLASSES, graph_files
from smart_devices import EngineInfo, EngineStatus
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import Batch, DeviceTimes, Engine, EngineOptions, Scores

TIMEOUT = 60  # seconds until a test that hangs fails


class FakeEngine(Engine):
    """An engine whose test says how it runs."""

    @classmethod
    def create(cls, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec, options: EngineOptions) -> FakeEngine:
        raise NotImplementedError("made by its test")

    def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {"engine": "fake"}


class Faster(FakeEngine):
    """A second engine, whose scores are all 7, so that nobody takes them for the reference's."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @classmethod
    def create(
        cls,
        graph: GraphBytes,  # noqa: ARG003  # an engine's signature
        *,
        inputs: InputSpec,  # noqa: ARG003
        outputs: OutputSpec,
        options: EngineOptions,  # noqa: ARG003
    ) -> Faster:
        return cls(outputs.classes)

    def run(self, batch: Batch) -> Scores:
        return np.full((len(batch), self.classes), 7, np.float32)


FASTER = EngineInfo(
    name="faster", needs="nothing", part="cpu", judge="runtime.fakes:faster", factory="runtime.fakes:Faster"
)


def faster(_: object) -> EngineStatus:
    return EngineStatus("faster", available=True, version="7")


class OnCard(Faster):
    """An engine on a GPU whose clock says 1, 2 and 3 ms on the first timed call, and twice that on every later one."""

    timed = 0

    def run_timed(self, batch: Batch) -> tuple[Scores, DeviceTimes | None]:
        self.timed += 1
        once = 1 if self.timed == 1 else 2
        return self.run(batch), DeviceTimes(copy_in_ms=once * 1, compute_ms=once * 2, copy_out_ms=once * 3)

    def describe(self) -> dict[str, Any]:
        return {"engine": "on-card", "library": "cards 1.2", "device": "Abacus 8000", "lanes": 2}


ON_CARD = EngineInfo(
    name="on-card", needs="nothing", part="gpu", judge="runtime.fakes:on_card", factory="runtime.fakes:OnCard"
)


def on_card(_: object) -> EngineStatus:
    return EngineStatus("on-card", available=True, version="1.2")


class Gate(FakeEngine):
    """Gives its own constant; once armed, it waits inside of each run until it is let go."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.armed = False
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.running = 0
        self.closed = False

    def run(self, batch: Batch) -> Scores:
        assert not self.closed
        self.running += 1
        if self.armed:
            self.entered.set()
            assert self.let_go.wait(timeout=TIMEOUT)
        self.running -= 1
        return np.full((len(batch), CLASSES), self.value, np.float32)

    def close(self) -> None:
        assert not self.running, "a call is still in flight"
        self.closed = True


def replace_engines(monkeypatch: pytest.MonkeyPatch, make: Callable[[str], Engine]) -> list[str]:
    """Let ``make`` make every engine from its path's name; return the names in the order of being made, as it grows."""
    names = {graph_files(name)[0]: name for name in ("clean", "robust")}
    made: list[str] = []

    def create(_: str, graph: Any, **__: Any) -> Engine:
        name = names[graph.model]
        made.append(name)
        return make(name)

    monkeypatch.setattr(smart_runtime.serving, "create_engine", create)
    return made


class Thread(threading.Thread):
    """Runs ``work`` and hands what came of it to `outcome`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)  # one that hangs must not keep pytest from ending
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # it would be lost: `outcome` raises it
            self._error = error

    def outcome(self) -> Any:
        """Wait for the end; return what ``work`` returned, or raise what it raised."""
        self.join(timeout=TIMEOUT)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error
        return self._value
