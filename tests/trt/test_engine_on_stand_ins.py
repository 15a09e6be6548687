"""TensorRT's engine under `SmartModel`, over a driver and a TensorRT that are none."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import as_float, graph_files, random_images
from runtime.fakes import TIMEOUT, Thread
from smart_devices import EngineStatus, gpu_engines
from smart_runtime import BatchRange, EngineOptions, Result, SmartModel
from smart_runtime.engines import AUTO, REFERENCE_ENGINE
from smart_runtime.engines.cuda import lane_pool
from smart_runtime.engines.plan_keys import Key, key_digest
from smart_runtime.engines.plans import PlanCache
from smart_runtime.memory import RESIDENT
from trt.fake_tensorrt import DIALECTS
from trt.machine import gpu_machine

PATHS = ("clean", "robust")
IMAGES = as_float(random_images(24))
OPTIONS = EngineOptions(batch=BatchRange(1, 4, 8))


@pytest.fixture(scope="module")
def expected(bundle: Path) -> dict[str, np.ndarray]:
    """What the reference engine says of each image alone, and so of each in any batch."""
    with SmartModel.load(bundle, engine=REFERENCE_ENGINE, threads=1) as model:
        found = {}
        for path in PATHS:
            model.path = path
            found[path] = np.concatenate([model(IMAGES[i : i + 1]) for i in range(len(IMAGES))])
    return found


@pytest.fixture(params=DIALECTS)
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path
) -> Iterator[str]:
    """Every dialect in turn; the name of its engine."""
    with gpu_machine(monkeypatch, stand_in, request.param, cache=tmp_path):
        yield "tensorrt-rtx" if request.param.startswith("rtx") else "tensorrt"


def test_every_batch_size_gives_the_bits_of_the_reference(
    machine: str, bundle: Path, expected: dict[str, np.ndarray]
) -> None:
    with SmartModel.load(bundle, engine=machine, options=OPTIONS) as model:
        for path in (*PATHS, *PATHS):
            model.path = path
            for images in (1, 2, 7, 8, 9, 16, 17, 24):
                assert np.array_equal(model(IMAGES[:images]), expected[path][:images])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path) -> Iterator[StandInDriver]:
    """The dialect of JetPack 6, whose streams are never done at once."""
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path):
        stand_in.delay(200)
        yield stand_in


def load(bundle: Path, memory: Any = RESIDENT) -> SmartModel:
    return SmartModel.load(bundle, engine="tensorrt", options=OPTIONS, memory=memory)


class Caller:
    """Calls with batches up to twice the largest that a plan takes, and holds each result against the reference."""

    def __init__(self, expected: dict[str, np.ndarray], *, seed: int) -> None:
        self._expected, self._dice = expected, random.Random(seed)  # noqa: S311

    def cut(self) -> slice:
        first = self._dice.randrange(8)
        return slice(first, self._dice.randrange(first + 1, first + 17))

    def check(self, result: Result, cut: slice) -> None:
        bits = {path: np.array_equal(result.scores, scores[cut]) for path, scores in self._expected.items()}
        assert [path for path, equal in bits.items() if equal] == [result.path], "mixed, wrong, or of the other path"

    def call(self, model: SmartModel, times: int) -> None:
        for _ in range(times):
            cut = self.cut()
            self.check(model.run(IMAGES[cut]), cut)


def storm(models: Sequence[SmartModel], expected: dict[str, np.ndarray], *, calls_each: int) -> int:
    """Call from 8 threads, each model in turn, and switch three times a call; return how many switches there were."""
    due = threading.Semaphore(0)

    def work(number: int) -> None:
        caller = Caller(expected, seed=number)
        for _ in range(calls_each):
            due.release(3)
            caller.call(models[number % len(models)], 1)

    threads = [Thread(partial(work, number)) for number in range(8)]
    for number in range(3 * 8 * calls_each):  # not as many as there can be: they would leave no time for the calls
        assert due.acquire(timeout=TIMEOUT)
        model = models[number % len(models)]
        model.switch("robust" if model.path == "clean" else "clean")
    for thread in threads:
        thread.outcome()
    return sum(model.stats.switches for model in models)


@pytest.mark.parametrize("calls_each", [40, pytest.param(2500, marks=pytest.mark.slow)])
def test_a_storm_of_switches_mixes_nothing(
    gpu: StandInDriver, bundle: Path, expected: dict[str, np.ndarray], calls_each: int
) -> None:
    with load(bundle) as model:
        switches = storm([model], expected, calls_each=calls_each)
        paths = model.stats.paths
        assert sum(path.calls for path in paths.values()) == 8 * calls_each
        assert all(path.calls and not path.errors for path in paths.values())
    print(f"{8 * calls_each} calls, {switches} switches, {gpu.calls()} calls of the driver")  # noqa: T201  # with -s
    assert switches == 3 * 8 * calls_each


def test_two_models_share_a_gpu(gpu: StandInDriver, bundle: Path, expected: dict[str, np.ndarray]) -> None:
    """Four graphs on the same lanes, and the first model goes while the second one's calls run."""
    with load(bundle) as second:
        with load(bundle) as first:
            storm([first, second], expected, calls_each=20)
            running = Thread(partial(Caller(expected, seed=1).call, second, 20))
        running.outcome()
        Caller(expected, seed=2).call(second, 1)
    assert gpu.leaks() == {}


@pytest.mark.parametrize("memory", ["on-demand", "one path"])
def test_a_storm_on_demand(
    gpu: StandInDriver, bundle: Path, expected: dict[str, np.ndarray], memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With room for both paths for a moment, and with room for one, where calls wait for the other one."""
    budget = max(sum(len(data) for data in graph_files(path)) for path in PATHS) if memory == "one path" else memory
    caplog.set_level(logging.ERROR)  # each switch says that calls wait
    with load(bundle, budget) as model:
        callers = [Thread(partial(Caller(expected, seed=number).call, model, 20)) for number in range(4)]
        for number in range(12):
            model.switch(PATHS[(number + 1) % 2])
        for caller in callers:
            caller.outcome()
        assert model.stats.switches == 12
        assert not any(path.errors for path in model.stats.paths.values())


def test_tasks_share_the_lanes(gpu: StandInDriver, bundle: Path, expected: dict[str, np.ndarray]) -> None:
    async def ask(model: SmartModel, number: int) -> None:
        caller = Caller(expected, seed=number)
        for _ in range(5):
            cut = caller.cut()
            with model.using(PATHS[number % 2]):
                result = await model.arun(IMAGES[cut])
            assert result.path == PATHS[number % 2]
            caller.check(result, cut)
            model.switch(PATHS[number % 2])
            cut = caller.cut()
            caller.check(await model.arun(IMAGES[cut]), cut)

    async def main(model: SmartModel) -> None:
        await asyncio.gather(*(ask(model, number) for number in range(12)))

    with load(bundle) as model:
        asyncio.run(main(model))
        assert sum(path.calls for path in model.stats.paths.values()) == 120
    assert gpu.leaks() == {}


def test_a_model_that_nobody_closes_gives_back_the_gpu(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path):
        model = SmartModel.load(bundle, engine="tensorrt", options=OPTIONS)
        assert stand_in.used()
        del model
        gc.collect()
        assert not stand_in.used()


def test_what_was_compiled_on_the_device_is_kept(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    saved: list[tuple[Key, bytes]] = []
    save = PlanCache.save_kernels

    def saving(self: PlanCache, key: Key, kernels: bytes) -> None:
        saved.append((key, kernels))
        save(self, key, kernels)

    monkeypatch.setattr(PlanCache, "save_kernels", saving)
    with gpu_machine(monkeypatch, stand_in, "rtx-1.7", cache=tmp_path):
        SmartModel.load(bundle, engine="tensorrt-rtx", options=OPTIONS).close()
        assert len(saved) == len(PATHS)
        SmartModel.load(bundle, engine="tensorrt-rtx", options=OPTIONS).close()
        assert len(saved) == len(PATHS), "they were there"
        kept = PlanCache()
        for key, data in saved:
            found = kept.find(key)
            assert found is not None
            assert found.kernels == data
        (file,) = kept.folder.glob(f"{key_digest(saved[0][0])}/kernels")
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        found = kept.find(saved[0][0])
        assert found is not None
        assert found.kernels == b"", "what was damaged is compiled anew"
        SmartModel.load(bundle, engine="tensorrt-rtx", options=OPTIONS).close()
        assert len(saved) == len(PATHS) + 1


def test_a_hundred_reloads_leave_the_gpu_as_it_was(
    gpu: StandInDriver, bundle: Path, expected: dict[str, np.ndarray]
) -> None:
    gpu.delay(0)
    with load(bundle) as model:
        kept = gpu.used(), gpu.live()
        for reload in range(100):
            model.reload(bundle)
            path = PATHS[reload % 2]
            model.switch(path)
            assert np.array_equal(model(IMAGES[:1]), expected[path][:1])
            assert (gpu.used(), gpu.live()) == kept, f"after {reload + 1} reloads"
        (pool,) = lane_pool._pools.values()
        assert (pool.lanes, len(pool._programs), pool.line) == (OPTIONS.lanes, len(PATHS), {})
        assert [len(lane.seats) for lane in pool._lanes] == [len(PATHS)] * OPTIONS.lanes
    assert gpu.leaks() == {}


@pytest.mark.parametrize("engine", ["tensorrt", AUTO])
def test_a_load_or_reload_looks_once_whether_the_engine_can_run(
    gpu: StandInDriver, bundle: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    load(bundle).close()  # so that it is installed, which `auto` asks for
    looks: list[object] = []

    def judge(around: object) -> EngineStatus:
        looks.append(around)
        return EngineStatus("tensorrt", available=True)

    monkeypatch.setattr(gpu_engines, "tensorrt", judge)
    with SmartModel.load(bundle, engine=engine, options=OPTIONS) as model:
        assert (model.engine_name, len(looks)) == ("tensorrt", 1)
        model.reload(bundle)
        assert len(looks) == 2


def test_a_plan_for_one_batch_size_takes_every_batch(
    machine: str, bundle: Path, expected: dict[str, np.ndarray]
) -> None:
    """Smaller ones are filled up, larger ones cut into pieces."""
    with SmartModel.load(bundle, engine=machine, options=EngineOptions(batch=BatchRange(4, 4, 4))) as model:
        for images in (1, 4, 6):
            assert np.array_equal(model(IMAGES[:images]), expected["clean"][:images])
