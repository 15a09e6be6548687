"""What a device promises: its facts, one context for all, the previous one put back, memory and streams that work."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from smart_common.errors import MissingExtraError
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.driver import load_driver
from smart_runtime.engines.cuda.resources import _Resource
from smart_runtime.errors import ClosedError, DeviceLostError, DeviceTakenError, EngineError, OutOfMemoryError

ILLEGAL_ADDRESS = 700


def current() -> int | None:
    context = ctypes.c_void_p()
    load_driver().call("cuCtxGetCurrent", ctypes.byref(context))
    return context.value


def set_current(context: int | None) -> None:
    load_driver().call("cuCtxSetCurrent", ctypes.c_void_p(context))


def test_a_device_says_what_it_is(stand_in: StandInDriver) -> None:
    stand_in.device(ordinal=1, name="Orin (nvgpu)", capability=(8, 9), multiprocessors=11, integrated=True)
    stand_in.total(7_000_000, 1)
    first, second = Device.shared(), Device.shared(1)
    assert (first.ordinal, first.name, first.capability, first.multiprocessors) == (0, "Stand-in", "8.7", 16)
    assert (second.ordinal, second.name, second.capability, second.multiprocessors) == (1, "Orin (nvgpu)", "8.9", 11)
    assert (first.integrated, second.integrated) == (False, True)
    assert (first.total_bytes, second.total_bytes) == (2**30, 7_000_000)
    assert (first.uuid, second.uuid) == ("07" * 16, "08" * 16)
    assert (first.cuda_version, first.lost, str(second)) == ("12.6", None, "GPU 1 (Orin (nvgpu))")
    assert stand_in.leaks() == {}


def test_it_is_one_for_all_and_takes_its_context_at_the_first_use_for_good(stand_in: StandInDriver) -> None:
    """Who only looks whether a GPU can serve takes nothing of its memory."""
    first, second = Device.shared(), Device.shared()
    assert first is second
    assert stand_in.live()["contexts"] == 0
    for device in (first, second):
        device.check()
        assert stand_in.live()["contexts"] == 1
    del first, second, device
    gc.collect()
    with Device.shared().use():
        assert stand_in.live()["contexts"] == 1
    assert "cuDevicePrimaryCtxRelease_v2" not in stand_in.trace()


def test_a_device_that_is_not_there_is_refused(stand_in: StandInDriver) -> None:
    for ordinal in (2, -1):
        with pytest.raises(
            EngineError, match=f"^there is no GPU {ordinal}: the driver shows 2, counted from 0; choose"
        ):
            Device.shared(ordinal)
    assert stand_in.leaks() == {}


def test_a_driver_that_does_not_answer_is_refused(stand_in: StandInDriver) -> None:
    stand_in.stick(100)
    with pytest.raises(MissingExtraError, match=r"does not answer \(cuInit: CUDA_ERROR_NO_DEVICE \(100\)\)"):
        Device.shared()
    stand_in.stick(0)
    Device.shared()


def test_a_fork_after_another_library_used_the_driver_is_named(stand_in: StandInDriver) -> None:
    """So `cuInit` answers in a child whose parent used the GPU through, say, PyTorch."""
    stand_in.stick(3)
    with pytest.raises(ClosedError, match="was forked from one that uses the GPU"):
        Device.shared()
    stand_in.stick(0)


HOLDER = """
import sys
from smart_runtime.engines.cuda.device import Device
Device.shared().check()
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_gpu_that_another_process_has_to_itself_is_named(
    stand_in: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_COMPUTE_MODE", "3")  # exclusive process
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    device = Device.shared()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env={**stand_in.environment(), **paths}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has it\n"
        with pytest.raises(DeviceTakenError, match=r"one process at a time and another .*--compute-mode=DEFAULT"):
            device.check()
        assert not device.is_in_use
        holder.communicate()
    device.check()
    assert device.is_in_use
    assert stand_in.leaks() == {}


def test_a_gpu_that_lets_nobody_in_is_not_called_lost(stand_in: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device.shared()
    monkeypatch.setenv("STAND_IN_COMPUTE_MODE", "2")  # prohibited
    with pytest.raises(EngineError, match=r"^GPU 0 .* lets no process in: its compute mode is prohibited; `nvidia-smi"):
        device.check()
    monkeypatch.delenv("STAND_IN_COMPUTE_MODE")
    device.check()
    assert stand_in.leaks() == {}


def test_its_context_is_current_inside_and_the_one_before_it_after(stand_in: StandInDriver) -> None:
    device = Device.shared()
    for before in (None, stand_in.foreign_context()):
        set_current(before)
        with device.use():
            ours = current()
            assert ours not in {before, None}
            with device.use():
                assert current() == ours
            assert current() == ours
        assert current() == before
        with pytest.raises(ZeroDivisionError), device.use():
            raise ZeroDivisionError
        assert current() == before
        memory = device.memory(8)  # outside of a block
        assert current() == before
        memory.release()
        assert current() == before
    set_current(None)
    assert stand_in.leaks() == {}


def test_a_context_that_cannot_be_put_back_is_an_error(stand_in: StandInDriver) -> None:
    device = Device.shared()
    stand_in.fail(2, 1)
    with pytest.raises(EngineError, match=r"refused a call \(cuCtxSetCurrent: CUDA_ERROR_INVALID_VALUE"), device.use():
        pass
    assert current() is None, "it was tried again"
    assert stand_in.leaks() == {}


def test_entering_costs_three_calls_and_one_where_it_is_current(stand_in: StandInDriver) -> None:
    device = Device.shared()
    device.check()  # which retains it
    start = stand_in.calls()
    with device.use(), device.use():
        pass
    assert stand_in.trace(start) == ["cuCtxGetCurrent", "cuCtxSetCurrent", "cuCtxGetCurrent", "cuCtxSetCurrent"]


def test_two_devices_have_contexts_and_memory_of_their_own(stand_in: StandInDriver) -> None:
    first, second = Device.shared(0), Device.shared(1)
    with first.use():
        on_first = first.memory(100)
        with second.use():
            on_second = second.memory(2000)
            with first.use():
                assert (first.free_bytes(), second.free_bytes()) == (2**30 - 100, 2**30 - 2000)
        pinned = first.pinned(10)
        assert [first.ordinal_of(one.address) for one in (on_first, on_second)] == [0, 1]
        assert first.ordinal_of(on_second.address + 1999) == 1
        assert first.ordinal_of(on_second.address + 2000) is None
        assert first.ordinal_of(np.zeros(4).ctypes.data) is None
    with second.use():  # releasing goes to the right context all the same
        for one in (on_first, pinned, on_second):
            one.release()
    assert stand_in.leaks() == {}


def test_a_context_that_its_owner_destroyed_meanwhile_is_no_error_of_ours(stand_in: StandInDriver) -> None:
    device, other = Device.shared(0), Device.shared(1)
    with other.use():
        others = current()
    set_current(others)
    stand_in.library.cuDevicePrimaryCtxRelease_v2(1)
    with device.use():
        assert device.free_bytes() == 2**30
    assert device.lost is None


def test_bytes_go_in_across_and_out_in_order(stand_in: StandInDriver) -> None:
    stand_in.delay(300)
    device = Device.shared()
    data = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
    with device.use():
        first, second, third = device.memory(10_000), device.memory(10_000), device.memory(0)
        sent, received = device.pinned(10_000), device.pinned(10_000)
        stream, other = device.stream(), device.stream()
        sent.array[:] = data
        stream.copy_in(first.address, sent.address, 10_000)
        stream.copy_on_device(second.address, first.address, 10_000)
        copied = device.event()
        copied.record(stream)
        other.wait(copied)
        other.copy_out(received.address, second.address, 10_000)
        other.synchronize()
        np.testing.assert_array_equal(received.array, data)
        assert (first.address % 256, third.bytes, device.pinned(0).array.shape) == (0, 0, (0,))
        default = 0  # the stream of another library, by its handle
        copied.record(default)
        copied.synchronize()
    assert stand_in.pageable_copies() == 0
    for one in (stream, other, first, second, third, sent, received, copied):
        one.release()
        one.release()
    assert stand_in.leaks() == {}


def test_a_stream_that_is_released_has_done_its_work(stand_in: StandInDriver) -> None:
    stand_in.delay(2000)
    device = Device.shared()
    memory, pinned, stream = device.memory(1000), device.pinned(1000), device.stream()
    with device.use():
        for _ in range(20):
            stream.copy_in(memory.address, pinned.address, 1000)
    for one in (stream, memory, pinned):
        one.release()
    assert stand_in.leaks() == {}, "memory was freed that a copy used"


def test_events_measure_what_lies_between_them(stand_in: StandInDriver) -> None:
    device = Device.shared()
    with device.use():
        stream, start, end, plain = (
            device.stream(),
            device.event(timing=True),
            device.event(timing=True),
            device.event(),
        )
        start.record(stream)
        end.record(stream)
        plain.record(stream)
        stream.synchronize()
        assert 0 <= end.milliseconds_since(start) < 60_000
        assert start.milliseconds_since(start) == 0
    with pytest.raises(EngineError, match="INVALID_HANDLE"), device.use():
        plain.milliseconds_since(start)
    for one in (stream, start, end, plain):
        one.release()


def test_an_array_keeps_its_pinned_memory(stand_in: StandInDriver) -> None:
    device = Device.shared()
    array = device.pinned(100).array[10:]
    gc.collect()
    array[:] = 7
    assert stand_in.live()["pinned"] == 1
    del array
    assert stand_in.live()["pinned"] == 0  # at once: there is no circle
    assert stand_in.leaks() == {}


def test_what_is_dropped_is_given_back(stand_in: StandInDriver) -> None:
    device = Device.shared()
    device.memory(10)
    device.stream()
    assert stand_in.leaks() == {}


def test_what_an_interrupt_has_taken_from_its_owner_is_found(
    stand_in: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python prints an exception that strikes a finalizer, and goes on without what that had still to do."""
    device = Device.shared()
    kept = device.memory(10)
    lost: list[None] = []
    with monkeypatch.context() as struck:
        struck.setattr("sys.unraisablehook", lambda _: lost.append(None))  # what it is given has the owner
        struck.setattr(_Resource, "release", lambda _: 1 // 0)
        device.memory(20)
    assert (len(lost), stand_in.used()) == (1, 30)
    device.give_back_orphans()
    assert stand_in.used() == 10
    kept.release()
    assert (stand_in.leaks(), device.held) == ({}, {})


def test_too_little_memory_is_said_and_changes_nothing(stand_in: StandInDriver) -> None:
    stand_in.total(1000)
    device = Device.shared()
    memory = device.memory(600)
    with pytest.raises(OutOfMemoryError, match=r"^GPU 0 \(Stand-in\) has no memory left .*; end other programs"):
        device.memory(401)
    assert (stand_in.used(), device.lost) == (600, None)
    device.memory(400).release()
    memory.release()
    assert stand_in.leaks() == {}


def test_errors_of_any_call_come_out_as_ours(stand_in: StandInDriver) -> None:
    device = Device.shared()
    stream = device.stream()
    with (
        pytest.raises(
            EngineError, match=r"refused a call \(cuMemcpyHtoDAsync_v2: CUDA_ERROR_INVALID_VALUE \(1\)\); try"
        ),
        device.use(),
    ):
        stream.copy_in(0, 0, 10)
    stream.release()
    with pytest.raises(EngineError, match="INVALID_HANDLE"), device.use():
        stream.synchronize()
    assert stand_in.leaks() == {}


def test_a_lost_device_is_lost_for_everyone_and_for_good(
    stand_in: StandInDriver, caplog: pytest.LogCaptureFixture
) -> None:
    device, again = Device.shared(), Device.shared()
    held = [device.memory(10), device.pinned(10), device.stream(), device.event()]
    stream = device.stream()
    message = (
        r"^GPU 0 \(Stand-in\) failed with CUDA_ERROR_ILLEGAL_ADDRESS \(700\) in cuStreamSynchronize and this process "
        r"cannot use it any more; start the process again$"
    )
    start = stand_in.calls()
    stand_in.fail(2, ILLEGAL_ADDRESS, stays=True)  # the first two make the context current
    with pytest.raises(DeviceLostError, match=message), device.use():
        stream.synchronize()
    assert stand_in.trace(start)[2] == "cuStreamSynchronize"
    assert device.lost == "CUDA_ERROR_ILLEGAL_ADDRESS (700) in cuStreamSynchronize"
    calls = stand_in.calls()
    with pytest.raises(DeviceLostError, match=message), again.use():
        pass
    with pytest.raises(DeviceLostError, match=message):
        Device.shared()
    with pytest.raises(DeviceLostError, match=message):
        device.memory(10)
    assert stand_in.calls() == calls, "a lost device is not asked again"
    with caplog.at_level(logging.WARNING):
        for one in (*held, stream):
            one.release()
    assert stand_in.leaks() == {}
    assert caplog.messages == [], "that it is lost has been said"
    with pytest.raises(DeviceLostError, match=message):
        Device.shared()
    stand_in.stick(0)
    other = Device.shared(1)  # another device goes on
    with other.use():
        other.memory(10).release()


def test_releasing_goes_on_and_logs_the_first_error(stand_in: StandInDriver, caplog: pytest.LogCaptureFixture) -> None:
    device = Device.shared()
    makers = (lambda: device.memory(10), lambda: device.pinned(10), device.stream, device.event)
    for make in makers:
        one = make()
        start = stand_in.calls()
        one.release()
        steps = stand_in.trace(start)
        for step in range(len(steps)):
            caplog.clear()
            one = make()
            stand_in.fail(step, 1)
            one.release()
            assert current() is None or steps[step] == "cuCtxGetCurrent"
            assert stand_in.live() == {"memory": 0, "pinned": 0, "streams": 0, "events": 0, "contexts": 1}
            assert caplog.messages == [
                f"GPU 0 (Stand-in): giving back failed ({steps[step]}: CUDA_ERROR_INVALID_VALUE (1))"
            ]
    assert stand_in.leaks() == {}
