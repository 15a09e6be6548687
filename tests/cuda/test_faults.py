"""A failure at every call of the driver, and an interrupt at every place: nothing leaks, all errors are ours."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from hardened.striking import Stop, places, struck
from smart_common.errors import SmartError
from smart_runtime.engines.cuda import device as device_module
from smart_runtime.engines.cuda import driver as driver_module
from smart_runtime.engines.cuda.device import Device
from smart_runtime.errors import DeviceLostError, EngineError, OutOfMemoryError

OUT_OF_MEMORY, INVALID_VALUE, ILLEGAL_ADDRESS = 2, 1, 700
DATA = np.arange(200, dtype=np.uint8)


def use_everything() -> None:
    """Make one of each, run bytes through them, and give all back, or what there is if something fails."""
    device = Device.shared()
    held: list[Any] = []
    try:
        with device.use():
            held.append(memory := device.memory(200))
            held.append(sent := device.pinned(200))
            held.append(received := device.pinned(200))
            held.append(stream := device.stream())
            held.append(event := device.event(timing=True))
            sent.array[:] = DATA
            stream.copy_in(memory.address, sent.address, 200)
            event.record(stream)
            stream.wait(event)
            stream.copy_out(received.address, memory.address, 200)
            stream.synchronize()
            event.synchronize()
            event.milliseconds_since(event)
            assert device.free_bytes() == 2**30 - 200
            assert device.ordinal_of(memory.address) in {0, None}  # INVALID_VALUE says that CUDA does not know it
            assert (received.array == DATA).all(), "wrong bytes without an error"
    finally:
        for one in reversed(held):
            one.release()


@pytest.fixture
def anew(stand_in: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the driver and the runtime's view of it as new."""

    def reset() -> StandInDriver:
        stand_in.reset()
        monkeypatch.setattr(device_module, "_processes", {})
        return stand_in

    return reset


@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [OUT_OF_MEMORY, INVALID_VALUE, ILLEGAL_ADDRESS])
def test_a_failure_at_every_call_leaks_nothing(anew: Any, code: int, stays: bool) -> None:
    driver = anew()
    use_everything()
    calls, functions = driver.calls(), set(driver.trace())
    assert functions == set(driver_module.SIGNATURES) - {"cuGetErrorName", "cuMemcpyDtoDAsync_v2"}
    outcomes = set()
    for call in range(calls):
        driver = anew()
        driver.fail(call, code, stays=stays)
        try:
            use_everything()
        except SmartError as error:
            outcomes.add(type(error))
        assert driver.calls() > call
        assert driver.unknown_frees() == 0, driver.trace()[call]
        assert driver.leaks() == {}, f"after a failure of {driver.trace()[call]}, call {call}"
        for process in device_module._processes.values():
            for device in process.devices.values():
                assert (device.lost is not None) == (code == ILLEGAL_ADDRESS), driver.trace()[call]
                assert device.held == {}
    expected = {OUT_OF_MEMORY: OutOfMemoryError, INVALID_VALUE: EngineError, ILLEGAL_ADDRESS: DeviceLostError}[code]
    assert expected in outcomes


class Interrupting:
    """Raises after a call of the driver, which has done its work by then, as a Ctrl-C that came during it would."""

    def __init__(self, function: Any, state: dict[str, int]) -> None:
        self._function = function
        self._state = state

    def __call__(self, *args: Any) -> int:
        code = int(self._function(*args))
        self._state["left"] -= 1
        if self._state["left"] == 0:
            raise Stop
        return code


@pytest.fixture
def quiet() -> Iterator[None]:
    """An interrupt within a finalizer is printed and lost, here as in any program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda _: None)
        gc.collect()
        gc.freeze()  # so that each collection looks at what the test made
        yield
        gc.unfreeze()


def current_context() -> int | None:
    context = ctypes.c_void_p()
    driver_module.load_driver().call("cuCtxGetCurrent", ctypes.byref(context))
    return context.value


def settle(driver: StandInDriver) -> None:
    """What the caller of an interrupted call has left to do, which is to let go."""
    gc.collect()
    for process in device_module._processes.values():
        for device in process.devices.values():
            device.give_back_orphans()


def test_an_interrupt_after_every_call_of_the_driver_leaks_nothing(anew: Any, quiet: None) -> None:
    driver = anew()
    use_everything()
    for call in range(1, driver.calls() + 1):
        anew()
        driver_module.load_driver.cache_clear()
        state = {"left": call}
        loaded = driver_module.load_driver()
        for name, function in loaded._functions.items():
            loaded._functions[name] = Interrupting(function, state)
        with suppress(Stop):
            use_everything()
        state["left"] = -1
        assert current_context() is None
        settle(driver)
        assert driver.leaks() == {}, driver.trace()[call - 1]
        assert driver.unknown_frees() == 0, driver.trace()[call - 1]


def test_an_interrupt_at_every_place_leaks_nothing(anew: Any, quiet: None) -> None:
    driver = anew()
    driver_module.load_driver()
    everywhere = places(use_everything)
    assert len(everywhere) > 80
    for at in everywhere:
        anew()
        struck(use_everything, at=at)
        settle(driver)
        assert driver.leaks() == {}, f"struck the {at}th time"
        assert driver.unknown_frees() == 0, f"struck the {at}th time"
