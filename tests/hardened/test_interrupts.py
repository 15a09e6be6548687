"""An interrupt at any place of any operation leaves no pin, lock, thread or half state, also while it is kept."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardened.striking import Stop, native_threads, places, strike, struck, throw
from runtime.bundles import MIX, add_mix, as_float, expected_scores, graph_files, random_images, write_bundle
from runtime.fakes import TIMEOUT, Thread
from runtime.operating_points import write_watched_bundle
from smart_runtime import ClosedError, EngineError, SmartModel
from smart_runtime.audit.verification import verify_audit
from smart_runtime.policies import Tripwire

FLOATS = as_float(random_images(2))
TIGHT = max(sum(len(data) for data in graph_files(name)) for name in ("clean", "robust"))

# A file that is struck between its opening and its owner is closed by its finalizer, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Python's logging is not ours: a strike can leave a lock of its handlers locked (docs/reliability.md)."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    gc.collect()  # files that were struck, while their warnings are expected


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", change=add_mix)


def use_robust(model: SmartModel, _: Path) -> None:
    with model.using("robust"):
        assert model.run(FLOATS).path == "robust"


def switch(model: SmartModel, _: Path) -> None:
    model.switch("robust")


def reload(model: SmartModel, bundle: Path) -> None:
    model.reload(bundle)


def use_mix(model: SmartModel, _: Path) -> None:
    with model.using(MIX):
        assert model.run(FLOATS).path == MIX


def switch_to_mix(model: SmartModel, _: Path) -> None:
    model.switch(MIX)
    model.run(FLOATS)
    model.switch("robust")


def run_both(model: SmartModel, _: Path) -> None:
    model.both(FLOATS)


def threads_are(count: int) -> bool:
    """Whether the process has ``count`` threads, as soon as those that end have ended."""
    end = time.monotonic() + 2
    while native_threads() != count and time.monotonic() < end:
        time.sleep(0.001)
    return native_threads() == count


def assert_scores(model: SmartModel, made_by: str) -> None:
    np.testing.assert_allclose(model(FLOATS), expected_scores(made_by, FLOATS), rtol=0, atol=1e-6)


def assert_whole(model: SmartModel) -> None:
    """Nothing is pinned, what is said is so, and another thread finds no lock held."""
    assert not +model._state.pins
    assert model._scopes.path() is None
    assert not any(one.calls for one in model._state.loaded.values())
    if model.path != MIX:
        assert_scores(model, model.path)

    def use_it() -> None:
        for path in ("robust", "clean"):
            model.switch(path)
            assert_scores(model, path)

    Thread(use_it).outcome()


EVERY = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])


@pytest.mark.parametrize("memory", ["resident", "on-demand", TIGHT])
@pytest.mark.parametrize("work", [use_robust, switch, reload, use_mix, switch_to_mix, run_both])
@EVERY
def test_an_interrupt_at_any_place(
    bundle: Path, work: Callable[[SmartModel, Path], None], memory: Any, every: int
) -> None:
    if memory == TIGHT and work is use_robust:
        pytest.skip("there is room for one path only")
    if memory != "resident" and work in {use_mix, switch_to_mix, run_both}:
        pytest.skip("these need all paths")
    model = SmartModel.load(bundle, threads=2, memory=memory)  # two, so that an engine that stays has a thread
    threads = native_threads()
    numbers = places(lambda: work(model, bundle))
    model.switch("clean")
    kept = []
    for at in numbers[::every]:
        kept.append(struck(lambda: work(model, bundle), at=at))
        assert_whole(model)
        assert threads_are(threads), at
    assert sum(error is not None for error in kept) > 0.8 * len(kept)
    model.close()


@EVERY
def test_an_interrupt_at_any_place_of_load(bundle: Path, every: int) -> None:
    """Either there is a model, or nothing of it: no thread of an engine, as long as the exception is kept."""

    def load() -> None:
        SmartModel.load(bundle, threads=2, memory="on-demand")

    load()
    threads = native_threads()
    kept = []
    for at in places(load)[::every]:
        kept.append(struck(load, at=at))
        assert threads_are(threads), at
    assert sum(error is not None for error in kept) > 0.8 * len(kept)


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_place_of_a_life_with_an_audit_log(bundle: Path, tmp_path: Path, every: int) -> None:
    """No thread stays once the model is closed, the next one gets the file, and what was written is whole."""
    log = tmp_path / "log"
    models: list[SmartModel] = []

    def live() -> None:
        with SmartModel.load(bundle, threads=1, audit=log) as model:
            models.append(model)
            model.switch("robust")

    live()
    threads = native_threads()
    kept = []
    for at in places(live)[::every]:
        kept.append(struck(live, at=at))
        while models:
            models.pop().close()
        gc.collect()
        assert threads_are(threads), at
        live()
        assert verify_audit(log).problems == (), at
    assert sum(error is not None for error in kept) > 0.8 * len(kept)


def test_an_interrupt_at_any_place_of_close(bundle: Path) -> None:
    """It closes or it does not: a model whose close was struck before it did anything can be used and closed."""
    threads = native_threads()
    kept = []
    numbers = places(SmartModel.load(bundle, threads=2).close)
    for at in numbers:
        model = SmartModel.load(bundle, threads=2)
        kept.append(struck(model.close, at=at))
        with contextlib.suppress(ClosedError):
            assert_whole(model)
            model.close()
        assert threads_are(threads), at
    assert all(kept)


@pytest.mark.parametrize("strikes", [300, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("memory", ["resident", "on-demand", TIGHT])
def test_strikes_at_random_moments_over_all_calls(bundle: Path, strikes: int, memory: Any) -> None:
    """Three threads do all there is to do with one model; each is struck, and another takes its place."""
    chance = random.Random(0)  # noqa: S311  # no secret
    model = SmartModel.load(bundle, threads=1, memory=memory)
    picture = random_images(1)[0]
    works: list[Callable[[], object]] = [
        lambda: model.run(FLOATS),
        lambda: model.classify(picture),
        lambda: use_robust(model, bundle),
        lambda: use_mix(model, bundle),
        lambda: model.both(FLOATS),
        lambda: switch_to_mix(model, bundle),
        lambda: model.switch("clean"),
        lambda: switch(model, bundle),
        lambda: reload(model, bundle),
        lambda: SmartModel.load(bundle, threads=1, memory="on-demand").close(),
        lambda: (model.path, model.stats, model.memory(), model.notes, model.class_names, repr(model)),
    ]

    def work_for_ever(turn: int) -> None:
        while True:
            with contextlib.suppress(EngineError):  # of a tight budget, which says what it has no room for
                works[turn % len(works)]()
            turn += 1

    started = native_threads()
    threads = [Thread(partial(work_for_ever, turn)) for turn in range(3)]
    kept: deque[Thread] = deque(maxlen=100)  # each with its exception
    for i in range(strikes):
        time.sleep(chance.uniform(0, 0.003))
        thread = chance.choice(threads)
        strike(thread)
        kept.append(thread)
        threads[threads.index(thread)] = Thread(partial(work_for_ever, i))
    for thread in threads:
        strike(thread)
    for thread in (*kept, *threads):
        with pytest.raises(Stop):
            thread.outcome()
    assert_whole(model)
    model.reload(bundle)
    assert_whole(model)
    model.close()
    assert threads_are(started)


def test_strikes_while_the_tripwire_looks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers and workers are struck in turn: no lock stays held, and the next frames are looked at."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # pytest's own could be struck itself
    chance = random.Random(1)  # noqa: S311  # no secret
    policy = Tripwire(every=1)
    model = SmartModel.load(write_watched_bundle(tmp_path / "watched"), threads=1, policy=policy)

    def call_for_ever() -> None:
        while True:
            model.run(FLOATS)
            policy.status()

    thread, kept = Thread(call_for_ever), []
    for number in range(200):
        time.sleep(chance.uniform(0, 0.003))
        worker = policy._worker and policy._worker()
        if number % 2 and worker is not None:
            throw(worker.ident)  # not in a library: one in logging would leave pytest's handlers locked
            del worker
        else:
            strike(thread)
            kept.append(thread)
            thread = Thread(call_for_ever)
    strike(thread)
    for one in (*kept, thread):
        with pytest.raises(Stop):
            one.outcome()
    looked = policy.status()["shadow_runs_total"]
    end = time.monotonic() + TIMEOUT
    while policy.status()["shadow_runs_total"] == looked and time.monotonic() < end:
        model.run(FLOATS)
    assert policy.status()["shadow_runs_total"] > looked
    assert policy.status()["restarts_total"] > 0
    assert_whole(model)
    model.close()
