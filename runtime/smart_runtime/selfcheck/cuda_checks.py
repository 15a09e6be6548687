"""What `smart_runtime.engines.cuda` relies on, checked on one device.

Every check takes the number of a device and returns figures worth keeping, as plain values. It leaves the device as it
was, and needs about 150 MB of its memory at most.

Raises:
    CheckFailed: The device or its driver does not do what the runtime relies on.
    SmartError: There is no device of that number, or it failed.
"""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.driver import CudaError
from smart_runtime.engines.cuda.resources import DeviceMemory, Event, PinnedMemory, Stream
from smart_runtime.errors import ClosedError, EngineError, OutOfMemoryError
from smart_runtime.selfcheck.failure import CheckFailed, check

Figures: TypeAlias = dict[str, Any]

_MIB = 2**20
_SIZES = (1, 255, 4096, _MIB + 3)
_UNSTEADY = 32 * _MIB  # what other programs, and the driver for itself, may take or give meanwhile


class _Bench:
    """A device with its context current, and what is made on it; all is given back at the end."""

    def __init__(self, device: Device, stack: ExitStack) -> None:
        self.device = device
        self._stack = stack

    def memory(self, size: int) -> DeviceMemory:
        one = self.device.memory(size)
        self._stack.callback(one.release)
        return one

    def pinned(self, content: npt.NDArray[np.uint8] | int) -> PinnedMemory:
        one = self.device.pinned(content if isinstance(content, int) else content.size)
        self._stack.callback(one.release)
        one.array[:] = 0xEE if isinstance(content, int) else content
        return one

    def stream(self) -> Stream:
        one = self.device.stream()
        self._stack.callback(one.release)
        return one

    def event(self, *, timing: bool = False) -> Event:
        one = self.device.event(timing=timing)
        self._stack.callback(one.release)
        return one


@contextmanager
def _bench(device_ordinal: int) -> Iterator[_Bench]:
    device = Device.shared(device_ordinal)
    with device.use(), ExitStack() as stack:
        yield _Bench(device, stack)


def _pattern(size: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def check_facts(device_ordinal: int) -> Figures:
    """The device says what it is."""
    device = Device.shared(device_ordinal)
    names = ("name", "uuid", "capability", "multiprocessors", "total_bytes", "integrated", "cuda_version")
    facts = {name: getattr(device, name) for name in names}
    check(bool(device.name), "the device has no name")
    check(len(device.uuid) == 32 and int(device.uuid, 16) > 0, f"the device has no UUID but {device.uuid!r}")
    check(float(device.capability) >= 5.0, f"expected a compute capability of 5.0 or more, got {device.capability}")
    check(device.multiprocessors > 0, f"the device has {device.multiprocessors} multiprocessors")
    check(device.total_bytes > 0, "the device has no memory")
    check(float(device.cuda_version) >= 11.4, f"expected a driver for CUDA 11.4 or newer, got {device.cuda_version}")
    return facts


def check_memory_comes_back(device_ordinal: int) -> Figures:
    """What is released is free again, and blocks are aligned and apart."""
    with _bench(device_ordinal) as bench:
        device = bench.device
        device.memory(64 * _MIB).release()  # the driver keeps something of its own from the first time on
        before = device.free_bytes()
        blocks = [device.memory(size) for size in (1, 1000, _MIB, 64 * _MIB)]
        during = device.free_bytes()
        starts = sorted((block.address, block.bytes) for block in blocks)
        for block in blocks:
            block.release()
        after = device.free_bytes()
    check(all(address % 256 == 0 for address, _ in starts), "a block is not aligned to 256 bytes")
    check(all(a + size <= b for (a, size), (b, _) in pairwise(starts)), "two blocks overlap")
    check(before - during >= 32 * _MIB, f"65 MiB were allocated, and {before - during:,} bytes fewer are free")
    check(before - after <= _UNSTEADY, f"{before - after:,} bytes are missing after all was released")
    return {"free_bytes_before": before, "free_bytes_during": during, "free_bytes_after": after}


def check_round_trip(device_ordinal: int) -> Figures:
    """Bytes that go in, across the device and out are the same bytes, of every size."""
    with _bench(device_ordinal) as bench:
        stream = bench.stream()
        for seed, size in enumerate(_SIZES):
            data = _pattern(size, seed)
            sent, received = bench.pinned(data), bench.pinned(size)
            first, second = bench.memory(size), bench.memory(size)
            stream.copy_in(first.address, sent.address, size)
            stream.copy_on_device(second.address, first.address, size)
            stream.copy_out(received.address, second.address, size)
            stream.synchronize()
            differ = int(np.count_nonzero(received.array != data))
            check(differ == 0, f"{differ:,} of {size:,} bytes came back changed")
    return {"sizes": list(_SIZES)}


def check_parts_of_blocks(device_ordinal: int) -> Figures:
    """A copy touches what it is told to and nothing beside it."""
    size, start, length = 4096, 1000, 96
    with _bench(device_ordinal) as bench:
        stream, memory = bench.stream(), bench.memory(size)
        around, inside = bench.pinned(_pattern(size, 1)), bench.pinned(_pattern(length, 2))
        received = bench.pinned(size)
        stream.copy_in(memory.address, around.address, size)
        stream.copy_in(memory.address + start, inside.address, length)
        stream.copy_out(received.address, memory.address, size)
        stream.synchronize()
        expected = around.array.copy()
        expected[start : start + length] = inside.array
        differ = int(np.count_nonzero(received.array != expected))
    check(differ == 0, f"{differ} of {size} bytes are not what was copied there")
    return {"bytes": size}


def check_stream_order(device_ordinal: int) -> Figures:
    """Work on one stream is done in the order in which it was given, though nobody waits in between."""
    rounds, size = 50, 256 * 1024
    with _bench(device_ordinal) as bench:
        stream, memory = bench.stream(), bench.memory(size)
        sent = [bench.pinned(np.full(size, turn, np.uint8)) for turn in range(rounds)]
        received = [bench.pinned(size) for _ in range(rounds)]
        for one, other in zip(sent, received, strict=True):
            stream.copy_in(memory.address, one.address, size)
            stream.copy_out(other.address, memory.address, size)
        stream.synchronize()
        wrong = [turn for turn, one in enumerate(received) if not (one.array == turn).all()]
    check(not wrong, f"{len(wrong)} of {rounds} copies overtook one another on one stream")
    return {"rounds": rounds}


def check_two_streams(device_ordinal: int) -> Figures:
    """A stream that waits for an event of another one sees what that one did before it, and only needs that."""
    rounds, size = 20, _MIB
    with _bench(device_ordinal) as bench:
        writer, reader, written = bench.stream(), bench.stream(), bench.event()
        memory, sent, received = bench.memory(size), bench.pinned(size), bench.pinned(size)
        wrong = 0
        for turn in range(rounds):
            sent.array[:] = turn
            writer.copy_in(memory.address, sent.address, size)
            written.record(writer)
            reader.wait(written)
            reader.copy_out(received.address, memory.address, size)
            reader.synchronize()
            wrong += not (received.array == turn).all()
    check(wrong == 0, f"{wrong} of {rounds} times a stream did not wait for the event of another one")
    return {"rounds": rounds}


def check_events(device_ordinal: int) -> Figures:
    """Events say how long work took, not more than the clock on the wall; one that was never recorded is reached."""
    size = 32 * _MIB
    with _bench(device_ordinal) as bench:
        stream, memory, sent = bench.stream(), bench.memory(size), bench.pinned(size)
        start, end, never = bench.event(timing=True), bench.event(timing=True), bench.event()
        never.synchronize()
        stream.copy_in(memory.address, sent.address, size)  # for clocks that sleep
        stream.synchronize()
        began = time.perf_counter()
        start.record(stream)
        stream.copy_in(memory.address, sent.address, size)
        end.record(stream)
        end.synchronize()
        wall_ms = (time.perf_counter() - began) * 1e3
        copy_ms = end.milliseconds_since(start)
    check(
        0 <= copy_ms <= wall_ms * 1.05 + 0.1, f"a copy took {copy_ms:.3f} ms by events and {wall_ms:.3f} by the clock"
    )
    return {"copied_bytes": size, "copy_ms": round(copy_ms, 4), "wall_ms": round(wall_ms, 4)}


def check_previous_context(device_ordinal: int) -> Figures:
    """The context that was current before is current again after, also when an error ends the block."""
    device = Device.shared(device_ordinal)
    outer = _current_context(device)
    with device.use():
        ours = _current_context(device)
        check(ours is not None, "no context is current within the block")
        with device.use():
            check(_current_context(device) == ours, "a block within a block has another context")
        check(_current_context(device) == ours, "the inner of two blocks took the context away")
    check(_current_context(device) == outer, "another context is current after a block than before it")
    with suppress(ZeroDivisionError), device.use():
        _ = 1 // 0
    check(_current_context(device) == outer, "another context is current after a block that failed")
    repeats = 200
    began = time.perf_counter()
    for _ in range(repeats):
        with device.use():
            pass
    cost_us = (time.perf_counter() - began) / repeats * 1e6
    return {"use_us": round(cost_us, 2)}


def _current_context(device: Device) -> int | None:
    context = ctypes.c_void_p()
    try:
        device.driver.call("cuCtxGetCurrent", ctypes.byref(context))
    except CudaError as error:
        raise CheckFailed(f"the driver does not say which context is current: {error}") from error
    return context.value


def check_out_of_memory(device_ordinal: int) -> Figures:
    """Asking for more than there is is refused as `OutOfMemoryError`, and the device goes on."""
    with _bench(device_ordinal) as bench:
        device = bench.device
        before = device.free_bytes()
        wanted = 16 * device.total_bytes
        message = None
        try:
            device.memory(wanted).release()
        except OutOfMemoryError as error:
            message = str(error)
        check(message is not None, f"the device of {device.total_bytes:,} bytes gave {wanted:,}")
        check(device.lost is None, "the device is lost after it refused memory")
        after = device.free_bytes()
        check(before - after <= _UNSTEADY, f"{before - after:,} bytes are missing after memory was refused")
        bench.memory(_MIB)
    return {"message": message}


def check_wrong_use_is_refused(device_ordinal: int) -> Figures:
    """A call that the driver refuses is an error of ours, and the device goes on."""
    with _bench(device_ordinal) as bench:
        stream, event = bench.stream(), bench.event(timing=False)
        event.record(stream)
        event.synchronize()
        message = None
        try:
            with bench.device.use():
                event.milliseconds_since(event)  # CUDA_ERROR_INVALID_HANDLE, says cuda.h, and nothing worse
        except EngineError as error:
            message = str(error)
        check(message is not None, "an event without timing gave a time")
        check(bench.device.lost is None, "the device is lost after it refused a call")
        bench.memory(_MIB)
    return {"message": message}


def check_pointers(device_ordinal: int) -> Figures:
    """The driver knows on which device an address lies, and which lie on none."""
    with _bench(device_ordinal) as bench:
        memory = bench.memory(1000)
        inside = [bench.device.ordinal_of(memory.address + offset) for offset in (0, 999)]
        host = np.zeros(1000, np.uint8)
        outside = bench.device.ordinal_of(host.ctypes.data)
    check(inside == [device_ordinal] * 2, f"memory of device {device_ordinal} is said to lie on {inside}")
    check(outside is None, f"memory of the host is said to lie on device {outside}")
    return {"ordinal": device_ordinal}


def check_fork(device_ordinal: int) -> Figures:
    """A forked child is refused before it reaches the driver, and harms its parent in nothing."""
    with _bench(device_ordinal) as bench:
        memory, stream = bench.memory(4096), bench.stream()
        sent, received = bench.pinned(_pattern(4096, 3)), bench.pinned(4096)
        stream.copy_in(memory.address, sent.address, 4096)
        with warnings.catch_warnings():  # Python 3.12 and newer warn of threads, of which this child needs none
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os._exit(_in_forked_child(bench, memory))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        check(status == 0, f"a forked child was not refused as it should be (status {status})")
        stream.copy_out(received.address, memory.address, 4096)
        stream.synchronize()
        check(bool((received.array == sent.array).all()), "the memory of the parent changed when a child was forked")
    return {"status": status}


def _in_forked_child(bench: _Bench, memory: DeviceMemory) -> int:
    """Return 0 if every use is refused and releasing does nothing, which the parent sees by its memory."""
    try:
        memory.release()
        bench.device.memory(16)
    except ClosedError:
        return 0
    except BaseException:  # the parent says it; nothing of a child comes on the screen
        return 2
    return 1


CHECKS: Mapping[str, Callable[[int], Figures]] = MappingProxyType(
    {
        "facts": check_facts,
        "memory comes back": check_memory_comes_back,
        "round trip": check_round_trip,
        "parts of blocks": check_parts_of_blocks,
        "stream order": check_stream_order,
        "two streams": check_two_streams,
        "events": check_events,
        "previous context": check_previous_context,
        "out of memory": check_out_of_memory,
        "wrong use is refused": check_wrong_use_is_refused,
        "pointers": check_pointers,
        "fork": check_fork,
    }
)
"""Every check by its name, in the order in which they are best run."""
