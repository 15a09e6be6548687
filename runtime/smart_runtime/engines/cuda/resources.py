"""What lies in the context of a GPU: memory, streams and events, each given back once, whatever happens."""

from __future__ import annotations

import sys
import weakref
from contextlib import AbstractContextManager
from ctypes import byref, c_float, c_uint8, c_uint64, c_void_p
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from smart_runtime.engines.cuda.driver import CudaError, Driver

# Flags of cuda.h.
_STREAM_NON_BLOCKING = 1  # does not wait for the default stream, where other libraries may work
_EVENT_DEFAULT, _EVENT_DISABLE_TIMING = 0, 2


class Held:
    """What the driver has made and must get back once: there before it is made, so that nothing can be lost.

    Attributes:
        value: The handle or address; zero until the driver has written it.
        free: The function that gives it back.
        wait: One that is called first, with ``value``; None for none.
        claim: What ``free`` is called with; empty once it was.
        owner: Gives the object whose it is, None once that is gone.
    """

    __slots__ = ("claim", "free", "owner", "value", "wait")

    def __init__(self, value: c_void_p | c_uint64, *, free: str, wait: str | None, owner: object) -> None:
        self.value = value
        self.free = free
        self.wait = wait
        self.claim: list[Any] = [value]
        self.owner = weakref.ref(owner)


class Owner(Protocol):
    """The device that resources lie on."""

    driver: Driver
    held: dict[int, Held]

    def use(self) -> AbstractContextManager[None]:
        """Return what makes its context current."""
        ...

    def give_back(self, held: Held) -> None:
        """Give ``held`` back; never raises."""
        ...


class _Resource:
    """Something that a device holds until it is released, or else until its last reference goes."""

    _type: ClassVar[type[c_void_p] | type[c_uint64]] = c_void_p
    _free: ClassVar[str]
    _wait: ClassVar[str | None] = None

    def __init__(self, device: Owner, make: str, *args: Any) -> None:
        self._device = device
        self._held = held = Held(self._type(), free=self._free, wait=self._wait, owner=self)
        try:
            with device.use():
                device.held[id(held)] = held
                try:
                    device.driver.call(make, byref(held.value), *args)
                except CudaError:
                    held.claim.clear()
                    raise
        except BaseException:  # Ctrl-C too: its traceback may keep this for long
            self.release()
            raise

    def release(self) -> None:
        """Give it back. Never raises, may be called again, and does nothing in a forked child."""
        self._device.give_back(self._held)

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        if not _finalizing() and hasattr(self, "_held"):  # the end of a process frees all
            self.release()


class DeviceMemory(_Resource):
    """Memory of the device; what it holds at first is undefined.

    Attributes:
        address: Where it begins on the device; a multiple of 256.
        bytes: How many were asked for.
    """

    _type = c_uint64
    _free = "cuMemFree_v2"

    def __init__(self, device: Owner, size: int) -> None:
        super().__init__(device, "cuMemAlloc_v2", max(size, 1))  # the driver refuses 0
        self.address = int(self._held.value.value or 0)
        self.bytes = size


class PinnedMemory(_Resource):
    """Memory of the host that the device copies from and to while the CPU goes on.

    Attributes:
        address: Where it begins.
        bytes: How many were asked for.
    """

    _free = "cuMemFreeHost"

    def __init__(self, device: Owner, size: int) -> None:
        super().__init__(device, "cuMemHostAlloc", max(size, 1), 0)
        self.address = int(self._held.value.value or 0)
        self.bytes = size

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """A view of the memory, uint8, (bytes,). It keeps the memory, but not past a call of `release`."""
        view: Any = (c_uint8 * self.bytes).from_address(self.address)
        view.owner = self  # and the array holds ``view``
        array: npt.NDArray[np.uint8] = np.ndarray((self.bytes,), np.uint8, buffer=view)
        return array


class Event(_Resource):
    """A point in the work of a stream."""

    _free = "cuEventDestroy_v2"

    def __init__(self, device: Owner, *, timing: bool) -> None:
        super().__init__(device, "cuEventCreate", _EVENT_DEFAULT if timing else _EVENT_DISABLE_TIMING)

    @property
    def handle(self) -> int:
        """The CUevent."""
        return int(self._held.value.value or 0)

    def record(self, stream: Stream | int) -> None:
        """Mark where ``stream`` is now; a number is the handle of a stream of another library."""
        self._device.driver.call(
            "cuEventRecord", self._held.value, stream if isinstance(stream, int) else stream.handle
        )

    def synchronize(self) -> None:
        """Wait until what was recorded has been reached; at once if nothing was."""
        self._device.driver.call("cuEventSynchronize", self._held.value)

    def milliseconds_since(self, other: Event) -> float:
        """Return what lies between ``other`` and this one, both with timing and both reached."""
        passed = c_float()
        self._device.driver.call("cuEventElapsedTime", byref(passed), other._held.value, self._held.value)
        return passed.value


class Stream(_Resource):
    """Work that the device does in order. Every call but `synchronize` and `release` returns before it is done."""

    _free = "cuStreamDestroy_v2"
    _wait = "cuStreamSynchronize"  # so that whatever is released after it is in nobody's use

    def __init__(self, device: Owner) -> None:
        super().__init__(device, "cuStreamCreate", _STREAM_NON_BLOCKING)
        self.handle = int(self._held.value.value or 0)

    def copy_in(self, device_address: int, host_address: int, size: int) -> None:
        """Copy ``size`` bytes from the host, where they must stay as they are until that is done, to the device."""
        self._device.driver.call("cuMemcpyHtoDAsync_v2", device_address, host_address, size, self._held.value)

    def copy_out(self, host_address: int, device_address: int, size: int) -> None:
        """Copy ``size`` bytes from the device to the host."""
        self._device.driver.call("cuMemcpyDtoHAsync_v2", host_address, device_address, size, self._held.value)

    def copy_on_device(self, to_address: int, from_address: int, size: int) -> None:
        """Copy ``size`` bytes from one place on the device to another."""
        self._device.driver.call("cuMemcpyDtoDAsync_v2", to_address, from_address, size, self._held.value)

    def wait(self, event: Event) -> None:
        """Let what comes after this call wait until ``event``, of any stream, is reached."""
        self._device.driver.call("cuStreamWaitEvent", self._held.value, event.handle, 0)

    def synchronize(self) -> None:
        """Wait until all its work is done; errors of that work come here."""
        self._device.driver.call("cuStreamSynchronize", self._held.value)
