"""The checks that `smart-run selftest` makes of CUDA, on the driver without a device, and on a real one if any."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from cuda.stand_in import StandInDriver
from smart_runtime.engines.cuda import device as device_module
from smart_runtime.engines.cuda import driver as driver_module
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.resources import DeviceMemory, Event, Stream
from smart_runtime.selfcheck.cuda_checks import CHECKS
from smart_runtime.selfcheck.failure import CheckFailed


def real_driver_answers() -> bool:
    try:
        return not ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError:
        return False


@pytest.fixture(params=["stand-in", pytest.param("driver", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDriver | None]:
    """Makes `Device` use one driver or the other; None is the real one."""
    if request.param == "stand-in":
        yield request.getfixturevalue("stand_in")
        return
    if not real_driver_answers():
        pytest.skip("needs an NVIDIA driver that answers, and a device")
    monkeypatch.setattr(device_module, "_processes", {})
    driver_module.load_driver.cache_clear()
    yield None
    driver_module.load_driver.cache_clear()


@pytest.mark.parametrize("name", CHECKS)
def test_the_driver_does_what_the_runtime_relies_on(cuda: StandInDriver | None, name: str) -> None:
    figures = CHECKS[name](0)
    assert json.loads(json.dumps(figures)) == figures, "figures are plain values"
    if cuda is not None:
        assert cuda.leaks() == {}
        assert cuda.pageable_copies() == 0


def always(value: Any) -> Any:
    return lambda *_: value


# By check: what breaks the promise, as (class or module, attribute, what stands there instead).
BROKEN: dict[str, list[tuple[Any, str, Any]]] = {
    "facts": [(Device, "total_bytes", property(always(0), always(None)))],
    "memory comes back": [(Device, "free_bytes", always(5))],
    "round trip": [(Stream, "copy_in", always(None)), (Stream, "copy_on_device", always(None))],
    "parts of blocks": [(Stream, "copy_out", always(None))],
    "stream order": [(Stream, "copy_in", always(None))],
    "two streams": [(Stream, "copy_out", always(None))],
    "events": [(Event, "milliseconds_since", always(1e6))],
    "previous context": [(device_module._Use, "_put_back", always(None))],
    "out of memory": [(Device, "total_bytes", property(always(5), always(None)))],
    "wrong use is refused": [(Event, "milliseconds_since", always(0.0))],
    "pointers": [(Device, "ordinal_of", always(0)), (Device, "ordinal_of", always(None))],
    "fork": [(os, "getpid", always(1))],
}


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_fails_where_its_promise_is_broken(stand_in: StandInDriver, name: str) -> None:
    for owner, attribute, instead in BROKEN[name]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, attribute, instead, raising=False)
            with pytest.raises(CheckFailed, match=r"^\S.{15,}"):
                CHECKS[name](0)


def test_a_leak_is_seen(stand_in: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, memory = [], Device.memory

    def leaking(self: Device, size: int) -> DeviceMemory:
        kept.append(memory(self, size))
        return memory(self, size)

    monkeypatch.setattr(Device, "memory", leaking)
    with pytest.raises(CheckFailed, match="bytes are missing after all was released"):
        CHECKS["memory comes back"](0)
