"""The switch under fire: threads, tasks, signals and scopes."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundles import Array, as_float, expected_scores, random_images
from runtime.each_engine import CPU, EngineUnderTest, cpu_only
from runtime.fakes import TIMEOUT, Gate, Thread, replace_engines
from smart_runtime import ClosedError, EngineError, PathError, Result, SmartModel

pytestmark = pytest.mark.usefixtures("engine")

FLOATS = as_float(random_images(4))
PATHS = ("clean", "robust")


@pytest.fixture
def model(bundle: Path) -> Iterator[SmartModel]:
    with SmartModel.load(bundle, threads=1) as loaded:
        yield loaded


def made_by(result: Result, images: Array = FLOATS) -> str:
    """The path whose oracle gives the scores of ``result``."""
    (path,) = [p for p in PATHS if np.allclose(result.scores, expected_scores(p, images), rtol=0, atol=1e-6)]
    return path


@cpu_only("engines of its own")
@pytest.mark.parametrize("event", ["switch", "close"])
def test_a_call_in_flight_finishes_on_its_path(bundle: Path, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    gates = {"clean": Gate(1), "robust": Gate(2)}
    replace_engines(monkeypatch, gates.__getitem__)
    model = SmartModel.load(bundle)
    gates["clean"].armed = True
    caller = Thread(lambda: model.run(FLOATS))
    assert gates["clean"].entered.wait(timeout=TIMEOUT)
    if event == "switch":
        model.path = "robust"  # returns at once, though a call is running
        later = model.run(FLOATS)
        assert (later.path, later.scores[0, 0]) == ("robust", 2)
    else:
        model.close()
        assert gates["robust"].closed
        with pytest.raises(ClosedError):
            model.run(FLOATS)
    assert not gates["clean"].closed
    gates["clean"].let_go.set()
    result = caller.outcome()
    assert (result.path, result.scores[0, 0]) == ("clean", 1)
    model.close()
    assert gates["clean"].closed  # by the last call that left it


@pytest.mark.parametrize("with_scopes", [False, True], ids=["switches", "switches and scopes"])
def test_every_result_is_made_by_the_path_it_names(
    engine: EngineUnderTest, model: SmartModel, with_scopes: bool
) -> None:
    """Bitwise: a batch always has the same scores on a path, and no two paths have the same."""
    batches = [as_float(random_images(count, seed=count)) for count in (1, 2, 3)]
    known = {}
    for path in model.paths:
        with model.using(path):
            known[path] = [model(batch) for batch in batches]
    before = model.stats
    calls, callers = (300 if engine.name == CPU else 40), 8  # the stand-ins are slow; tests/trt has a long storm
    start = threading.Barrier(callers + 1)
    running = [True] * callers

    def call(number: int) -> None:
        scope = PATHS[number % 2] if with_scopes and number < 4 else None
        try:
            start.wait()
            for i in range(calls):
                which = (number + i) % len(batches)
                if scope is None:
                    result = model.run(batches[which])
                else:
                    with model.using(scope):
                        result = model.run(batches[which])
                    assert result.path == scope
                assert np.array_equal(result.scores, known[result.path][which]), f"call {i} of thread {number}"
        finally:
            running[number] = False

    threads = [Thread(functools.partial(call, number)) for number in range(callers)]
    start.wait()
    switches = 0
    while any(running):
        model.switch(PATHS[switches % 2])
        switches += 1
    for thread in threads:
        thread.outcome()
    stats = model.stats
    assert sum(path.calls for path in stats.paths.values()) == 2 * len(batches) + callers * calls
    assert sum(sum(path.latency.counts) for path in stats.paths.values()) == 2 * len(batches) + callers * calls
    assert sum(path.errors for path in stats.paths.values()) == 0
    assert stats.switches - before.switches == switches - 1  # the first one asked for the path that it had


def test_after_switch_has_returned_every_call_has_the_new_path(model: SmartModel) -> None:
    """Each thread waits for the switch, and its next call is on the new path."""
    rounds, callers = 50, 4
    ready, done = threading.Barrier(callers + 1), threading.Barrier(callers + 1)

    def call() -> list[str]:
        seen = []
        for _ in range(rounds):
            ready.wait()
            seen.append(model.run(FLOATS).path)
            done.wait()
        return seen

    threads = [Thread(call) for _ in range(callers)]
    wanted = []
    for i in range(rounds):
        model.switch(PATHS[(i + 1) % 2])
        wanted.append(model.path)
        ready.wait()
        done.wait()
    assert [thread.outcome() for thread in threads] == [wanted] * callers


def test_a_scope_holds_in_its_thread_only(model: SmartModel) -> None:
    inside, may_end = threading.Event(), threading.Event()

    def scoped() -> tuple[str, str, str]:
        with model.using("robust"):
            inside.set()
            assert may_end.wait(timeout=TIMEOUT)
            in_scope = made_by(model.run(FLOATS))
            seen = model.path
        return in_scope, seen, model.run(FLOATS).path

    thread = Thread(scoped)
    assert inside.wait(timeout=TIMEOUT)
    assert made_by(model.run(FLOATS)) == model.path == "clean"
    model.switch("robust")
    model.switch("clean")
    may_end.set()
    assert thread.outcome() == ("robust", "robust", "clean")


def test_a_switch_does_not_reach_into_a_scope(model: SmartModel) -> None:
    with model.using("clean"):
        model.switch("robust")
        assert made_by(model.run(FLOATS)) == model.path == "clean"
    assert made_by(model.run(FLOATS)) == model.path == "robust"


@cpu_only("of scopes, which no engine sees")
@given(st.lists(st.sampled_from(PATHS), max_size=6))
def test_scopes_nest(bundle: Path, names: list[str]) -> None:
    with SmartModel.load(bundle, threads=1) as model:

        def enter(rest: list[str], outer: str) -> None:
            assert model.run(FLOATS).path == outer
            if rest:
                with model.using(rest[0]) as scoped:
                    assert scoped is model
                    enter(rest[1:], rest[0])
            assert model.run(FLOATS).path == outer

        enter(names, "clean")


def test_a_scope_is_that_of_one_model(bundle: Path, model: SmartModel) -> None:
    with SmartModel.load(bundle, threads=1) as other, model.using("robust"):
        assert (model.run(FLOATS).path, other.run(FLOATS).path) == ("robust", "clean")


def test_a_scope_ends_with_an_exception(model: SmartModel) -> None:
    with pytest.raises(KeyError), model.using("robust"):
        raise KeyError
    assert model.run(FLOATS).path == "clean"


def test_scopes_of_unknown_paths_and_closed_models(bundle: Path) -> None:
    model = SmartModel.load(bundle, threads=1)
    with pytest.raises(PathError, match="unknown path 'fast'; the bundle has 'clean', 'robust'"), model.using("fast"):
        pass
    with model.using("robust"):
        model.close()
        with pytest.raises(ClosedError):
            model.run(FLOATS)
    with pytest.raises(ClosedError), model.using("robust"):
        pass


def test_tasks_have_scopes_of_their_own(model: SmartModel) -> None:
    async def ask(path: str | None) -> list[str]:
        seen = []
        for _ in range(5):
            if path is None:
                seen.append(made_by(await model.arun(FLOATS)))
                continue
            with model.using(path):
                await asyncio.sleep(0)  # others run in between
                first, second = await asyncio.gather(model.arun(FLOATS), model.arun(FLOATS))
                seen += [made_by(first), made_by(second)]
        return seen

    async def main() -> list[list[str]]:
        return list(await asyncio.gather(ask("clean"), ask("robust"), ask(None)))

    assert asyncio.run(main()) == [["clean"] * 10, ["robust"] * 10, ["clean"] * 5]


@pytest.mark.parametrize("memory", ["resident", "on-demand"])
def test_what_outlives_a_scope_follows_the_model_again(bundle: Path, memory: Any) -> None:
    """A task, a copied context and an abandoned generator see a scope that has ended: the block around it counts."""
    with SmartModel.load(bundle, threads=1, memory=memory) as model:

        def frames(path: str) -> Iterator[str]:
            with model.using(path):
                while True:
                    yield model.run(FLOATS).path

        async def stream() -> AsyncIterator[str]:
            with model.using("robust"):
                while True:
                    yield (await model.arun(FLOATS)).path

        async def main() -> list[str]:
            ended = asyncio.Event()

            async def late() -> str:
                await ended.wait()
                return (await model.arun(FLOATS)).path

            with model.using("robust"):
                task = asyncio.create_task(late())
                await asyncio.sleep(0)
            ended.set()
            paths = [await task]
            frames = stream()
            paths.append(await anext(frames))
            await asyncio.create_task(frames.aclose())  # type: ignore[attr-defined]  # as frameworks do
            return [*paths, (await model.arun(FLOATS)).path]

        assert asyncio.run(main()) == ["clean", "robust", "clean"]
        with model.using("robust"):
            context = contextvars.copy_context()
        assert context.run(model.run, FLOATS).path == "clean"
        first, second = frames("robust"), frames("clean")
        assert [next(first), next(second)] == ["robust", "clean"]
        first.close()  # type: ignore[attr-defined]  # before the block that began after it
        second.close()  # type: ignore[attr-defined]
        assert (model.run(FLOATS).path, model.path) == ("clean", "clean")
        assert not +model._state.pins
        with model.using("robust"):
            assert made_by(model.run(FLOATS)) == "robust"


@cpu_only("engines of its own")
def test_an_engine_that_does_not_close(bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """It costs no result, and the others are closed."""
    gates = {"clean": Gate(1), "robust": Gate(2)}
    replace_engines(monkeypatch, gates.__getitem__)
    model = SmartModel.load(bundle)

    def fail() -> None:
        raise RuntimeError("the driver is gone")

    gates["clean"].close = fail  # type: ignore[method-assign]
    model.close()
    assert gates["robust"].closed
    assert "the engine of the path 'clean' did not close" in caplog.text


@cpu_only("engines of its own")
def test_the_event_loop_goes_on_during_a_call(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = {"clean": Gate(1), "robust": Gate(2)}
    replace_engines(monkeypatch, gates.__getitem__)
    with SmartModel.load(bundle) as model:
        gates["clean"].armed = True

        async def main() -> Result:
            running = asyncio.create_task(model.arun(FLOATS))
            while not gates["clean"].entered.is_set():
                await asyncio.sleep(0)
            model.switch("robust")
            assert (await model.arun(FLOATS)).path == "robust"
            assert not running.done()
            gates["clean"].let_go.set()
            return await running

        result = asyncio.run(main())
    assert (result.path, result.scores[0, 0]) == ("clean", 1)


@cpu_only("engines of its own")
def test_a_cancelled_task_leaves_the_model_whole(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = {"clean": Gate(1), "robust": Gate(2)}
    replace_engines(monkeypatch, gates.__getitem__)
    model = SmartModel.load(bundle)
    gates["clean"].armed = True

    async def main() -> None:
        running = asyncio.create_task(model.arun(FLOATS))
        while not gates["clean"].entered.is_set():
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        model.close()
        assert not gates["clean"].closed  # the thread is still inside
        gates["clean"].let_go.set()

    asyncio.run(main())  # ends when the pool's threads have
    assert gates["clean"].closed


@cpu_only("engines of its own")
def test_an_engine_that_raises_in_a_call(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller hears of it, others do not; the path goes on answering, and nothing keeps its engine."""
    gates = {"clean": Gate(1), "robust": Gate(2)}
    replace_engines(monkeypatch, gates.__getitem__)
    model = SmartModel.load(bundle)
    run = gates["clean"].run

    def fail(batch: Any) -> Any:
        raise EngineError("the device is gone")

    gates["clean"].run = fail  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="the device is gone") as kept:  # with its traceback, and the frames in it
        model.run(FLOATS)
    gates["clean"].run = run  # type: ignore[method-assign]
    assert model.run(FLOATS).scores[0, 0] == 1
    model.switch("robust", reason="clean failed")
    assert model.run(FLOATS).scores[0, 0] == 2
    stats = model.stats
    assert (stats.paths["clean"].errors, stats.paths["clean"].calls, stats.paths["robust"].errors) == (1, 1, 0)
    model.close()
    assert gates["clean"].closed
    assert gates["robust"].closed
    assert kept.value.args


def test_a_signal_handler_may_switch_in_the_middle_of_anything(model: SmartModel) -> None:
    """The handler interrupts its own thread wherever it is, inside of the model's locks too."""
    caught = 0

    def switch(*_: object) -> None:
        nonlocal caught
        caught += 1
        model.switch(PATHS[caught % 2], reason=f"signal {caught}")
        assert model.stats.paths["clean"].calls >= 0

    before = signal.signal(signal.SIGALRM, switch)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        while caught < 300:
            result = model.run(FLOATS)
            assert made_by(result) == result.path
            model.switch("clean")
            assert sum(model.stats.paths["clean"].latency.counts) == model.stats.paths["clean"].calls
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_switches_and_reloads_are_logged(bundle: Path, model: SmartModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="smart_runtime"):
        model.switch("robust", reason="strange pictures")
        model.switch("robust")
        model.run(FLOATS)
        model.reload(bundle)
    # The bundle has no scores of its own, by which TensorRT's plans are proved; that is said too.
    said = [one for record in caplog.records if not (one := record.getMessage()).startswith("nothing proves that ")]
    assert said == [
        "path 'robust' answers from now on, reason 'strange pictures'",
        f"the bundle {model.bundle.digest[:12]} serves from now on",
    ]
