"""A failure at every driver call in turn, of each kind: no wrong score, nothing leaked, only errors of ours."""

from __future__ import annotations

import gc
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import as_float, random_images, write_bundle
from smart_common.errors import MissingExtraError
from smart_runtime import BatchRange, ClosedError, DeviceLostError, EngineError, EngineOptions, InputError, SmartModel
from smart_runtime.engines import REFERENCE_ENGINE
from smart_runtime.engines.cuda import device, lane_pool
from smart_runtime.engines.cuda.driver import CudaError
from smart_runtime.memory import ON_DEMAND, RESIDENT
from trt.gpu_arrays import GpuArray, GpuLibrary, InterfaceArray
from trt.machine import gpu_machine, plans_in_cache

IMAGES = as_float(random_images(6))
OPTIONS = EngineOptions(batch=BatchRange(1, 2, 4))
SHORTAGE, REFUSAL, STICKY = 2, 1, 700  # CUresult: out of memory, invalid value, illegal address
CODES = pytest.mark.parametrize("code", [SHORTAGE, REFUSAL, STICKY])
SLOW = pytest.param(1, marks=pytest.mark.slow)
# Strides that come to every kind of call over the codes, which begin at other ones.
EVERY, EVERY_OF_FEW = pytest.mark.parametrize("every", [41, SLOW]), pytest.mark.parametrize("every", [11, SLOW])

Work = Callable[[SmartModel], Any]


@pytest.fixture(scope="module")
def expected(bundle: Path) -> dict[str, np.ndarray]:
    with SmartModel.load(bundle, engine=REFERENCE_ENGINE, threads=1) as model:
        found = {}
        for path in model.paths:
            model.path = path
            found[path] = np.concatenate([model(image[None]) for image in IMAGES])
    return found


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path) -> Iterator[Any]:
    """The stand-in; the plans of the bundle are in the cache, so that a load calls the driver alone."""
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path):
        load(bundle).close()
        yield stand_in


def load(bundle: Path, memory: Any = RESIDENT) -> SmartModel:
    return SmartModel.load(bundle, engine="tensorrt", options=OPTIONS, memory=memory)


def as_new(driver: StandInDriver) -> None:
    """Let a lost device be one that is not, as a new process would."""
    gc.collect()
    for process in device._processes.values():
        assert not any(left.held for left in process.devices.values())
        process.devices.clear()
    lane_pool._pools.clear()
    assert driver.leaks() == {}
    driver.reset()


def calls_of(driver: StandInDriver, work: Callable[[], Any]) -> int:
    before = driver.calls()
    work()
    return driver.calls() - before


@EVERY
@CODES
def test_while_loading_and_closing(driver: StandInDriver, bundle: Path, code: int, every: int) -> None:
    count = calls_of(driver, lambda: load(bundle).close())
    outcomes: Counter[str] = Counter()
    for call in range(code % every, count, every):
        driver.fail(call, code)
        try:
            load(bundle).close()
            outcomes["loaded"] += 1
        except (EngineError, MissingExtraError) as error:
            outcomes[type(error).__name__] += 1
        driver.fail(-1, 0)
        as_new(driver)
    assert count > 50
    assert {SHORTAGE: "OutOfMemoryError", REFUSAL: "EngineError", STICKY: "DeviceLostError"}[code] in outcomes


@pytest.mark.parametrize("every", [83, SLOW])
@CODES
def test_while_a_plan_is_built_and_proved(driver: StandInDriver, tmp_path: Path, code: int, every: int) -> None:
    """What is kept was proved."""
    with_scores = write_bundle(tmp_path / "with-scores", reference=True)

    def load_anew() -> None:
        for plan in plans_in_cache():
            shutil.rmtree(plan.parent)
        load(with_scores).close()

    count = calls_of(driver, load_anew)
    for call in range(code % every, count, every):
        driver.fail(call, code)
        with suppress(EngineError, MissingExtraError):
            load_anew()
        driver.fail(-1, 0)
        as_new(driver)
        for plan in plans_in_cache():
            assert json.loads(plan.with_name("meta.json").read_bytes())["facts"]["proofs"] == ["bundle"]
    assert count > 60


@EVERY_OF_FEW
@CODES
def test_while_running(
    driver: StandInDriver, bundle: Path, expected: dict[str, np.ndarray], code: int, every: int
) -> None:
    model = load(bundle)
    count = calls_of(driver, lambda: model(IMAGES))
    for call in range(code % every, count, every):
        driver.fail(call, code)
        with suppress(EngineError):
            assert np.array_equal(model(IMAGES), expected["clean"])
        driver.fail(-1, 0)
        if code == STICKY and device_of(model).lost:
            with pytest.raises(DeviceLostError, match="start the process again"):
                model(IMAGES)
            model.close()
            as_new(driver)
            model = load(bundle)
        assert np.array_equal(model(IMAGES), expected["clean"])
    model.close()
    assert count >= 8


class Clumsy(GpuArray):
    """An array of a library that raises exceptions of its own where the driver refuses."""

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int] | None = None) -> object:
        try:
            return super().__dlpack__(stream=stream, max_version=max_version)
        except CudaError as error:
            raise RuntimeError(f"CUDA error: {error}") from error


@EVERY
@CODES
@pytest.mark.parametrize("protocol", ["DLPack", "interface"])
def test_while_running_on_images_of_the_gpu(  # noqa: PLR0917
    driver: StandInDriver, bundle: Path, expected: dict[str, np.ndarray], protocol: str, code: int, every: int
) -> None:
    """The array's memory goes when its producer is told to let go of it: once, and not while the GPU reads it."""
    driver.delay(20)
    model, library = load(bundle), GpuLibrary()

    def given(array: GpuArray) -> Any:
        return InterfaceArray(array) if protocol == "interface" else array

    def new_array() -> GpuArray:
        array = library.array(IMAGES[:5], frees=True)  # two pieces
        array.__class__ = Clumsy
        with library.device.use():
            library.stream.synchronize()  # so that whatever is in the way of freeing it is not the library's own work
        return array

    array = new_array()
    count = calls_of(driver, lambda: model(given(array)))
    array.free()
    call = code % every
    while call < count:
        array = new_array()
        driver.fail(call, code)
        with suppress(EngineError, InputError):
            assert np.array_equal(model(given(array)), expected["clean"][:5])
        driver.fail(-1, 0)
        assert array.deleted == array.given
        assert not any(driver.faults().values())
        array.free()
        if code == STICKY and device_of(model).lost:
            library.close()
            model.close()
            as_new(driver)
            driver.delay(20)
            model, library = load(bundle), GpuLibrary()
        assert np.array_equal(model(IMAGES), expected["clean"])
        call += every
    library.close()
    model.close()
    assert count >= 14


def device_of(model: SmartModel) -> Any:
    (one, *_) = model._state.loaded.values()
    return one.engine._device  # type: ignore[attr-defined]


CHANGES: dict[str, tuple[Any, Work]] = {
    "switch": (ON_DEMAND, lambda model: model.switch("robust")),
    "reload": (RESIDENT, lambda model: model.reload(model.bundle.root)),
    "reload on demand": (ON_DEMAND, lambda model: model.reload(model.bundle.root)),
}


@EVERY
@CODES
@pytest.mark.parametrize("change", CHANGES)
def test_while_changing(  # noqa: PLR0917
    driver: StandInDriver, bundle: Path, expected: dict[str, np.ndarray], change: str, code: int, every: int
) -> None:
    memory, work = CHANGES[change]
    with load(bundle, memory) as model:
        count = calls_of(driver, lambda: work(model))
    as_new(driver)
    for call in range(code % every, count, every):
        model = load(bundle, memory)
        driver.fail(call, code)
        failed = False
        try:
            work(model)
        except EngineError:
            failed = True
        driver.fail(-1, 0)
        if device_of(model).lost:
            with pytest.raises(DeviceLostError):
                model(IMAGES)
        else:
            assert np.array_equal(model(IMAGES), expected[model.path])
            assert not failed or model.path == "clean", "the old path serves"
        model.close()
        as_new(driver)
    assert count > 20


@EVERY_OF_FEW
@CODES
def test_while_closing(driver: StandInDriver, bundle: Path, code: int, every: int) -> None:
    count = calls_of(driver, load(bundle).close)
    for call in range(code % every, count, every):
        model = load(bundle)
        driver.fail(call, code)
        model.close()
        driver.fail(-1, 0)
        with pytest.raises(ClosedError):
            model(IMAGES)
        as_new(driver)
    assert count > 10


def test_a_load_after_a_call_that_failed(driver: StandInDriver, bundle: Path, expected: dict[str, np.ndarray]) -> None:
    """It finds a lane that has to be made anew."""
    with load(bundle) as model:
        count = calls_of(driver, lambda: model(IMAGES))
        for call in range(count):
            driver.fail(call, REFUSAL)
            with suppress(EngineError):
                model(IMAGES)
            driver.fail(-1, 0)
            with load(bundle) as other:
                assert np.array_equal(other(IMAGES), expected["clean"])
            assert np.array_equal(model(IMAGES), expected["clean"])
