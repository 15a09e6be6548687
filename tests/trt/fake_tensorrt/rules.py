"""What NVIDIA calls undefined is an error here, written down; and the driver that stands in, seen from its user."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from smart_runtime.engines.cuda import driver

UNDEFINED: list[str] = []
"""Every undefined use so far in this process: tests check that there is none. Raising alone may be caught."""


class Undefined(Exception):  # noqa: N818  # it is no error of the library's
    """The real library would crash, or return anything."""


def undefined(what: str) -> Undefined:
    """Return what is to be raised for a use that the real library does not survive, after writing it down."""
    UNDEFINED.append(what)
    sys.stderr.write(f"undefined: {what}\n")  # of a child process nothing else is seen
    return Undefined(what)


class DriverError(Exception):
    """A call of the driver failed. What the real library calls then logs that, and returns nothing."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} returned {code}")
        self.code = code


_NOT_INITIALIZED = 3  # cuda.h, CUresult
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # cuda.h, CUdevice_attribute
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_jobs: dict[int, Callable[[], None]] = {}


def _run_job(number: int) -> None:
    """Run in a stream's thread what `Cuda.launch` put there."""
    job = _jobs.pop(number)
    try:
        job()
    except BaseException as error:  # nobody above could catch it
        UNDEFINED.append(f"a job in a stream failed: {error!r}")


_RUN_JOB = _HOST_FUNCTION(_run_job)  # for all jobs, since one that is made for each might go while it is running


class Cuda:
    """The driver of this process. It is not loaded here: the runtime does that before anything of TensorRT.

    Raises:
        Undefined: Nobody has loaded it, or no context is current: the real library ends in a segmentation fault, or
            takes the first device that there is.
        DriverError: The driver fails.
    """

    @staticmethod
    def in_use() -> bool:
        """Whether this process has loaded the driver and begun to use it."""
        try:
            library = ctypes.CDLL(driver.LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            return False
        code: int = library.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p()))
        return code != _NOT_INITIALIZED

    def __init__(self, why: str) -> None:
        try:
            self.library = ctypes.CDLL(driver.LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            raise undefined(f"{why} before the driver was in use") from None
        context = ctypes.c_void_p()
        try:
            self._call_twice("cuCtxGetCurrent", ctypes.byref(context))
        except DriverError as error:
            if error.code == _NOT_INITIALIZED:
                raise undefined(f"{why} before the driver was in use") from None
            raise
        if not context.value:
            raise undefined(f"{why} while no context of the driver is current")
        self.context: int = context.value

    def call(self, function: str, *arguments: Any) -> None:
        code = getattr(self.library, function)(*arguments)
        if code:
            raise DriverError(function, code)

    def allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Free what `allocate` returned, on whatever thread drops the last reference; never raises."""
        before = ctypes.c_void_p()
        with suppress(DriverError):
            self._call_twice("cuCtxGetCurrent", ctypes.byref(before))
        with suppress(DriverError):
            self._call_twice("cuCtxSetCurrent", ctypes.c_void_p(self.context))
        with suppress(DriverError):  # once: what is freed reports a failure after the deed
            self.call("cuMemFree_v2", ctypes.c_uint64(address))
        with suppress(DriverError):
            self._call_twice("cuCtxSetCurrent", before)

    def _call_twice(self, function: str, argument: Any) -> None:
        """Call again what failed: a failure that a test injects once is not to strike what only the stand-in asks."""
        try:
            self.call(function, argument)
        except DriverError:
            self.call(function, argument)

    def device(self) -> tuple[str, int]:
        """Return the compute capability of the current context's device, as ``8.7``, and its multiprocessors."""
        ordinal = ctypes.c_int(0)
        self.call("cuCtxGetDevice", ctypes.byref(ordinal))
        found = []
        for attribute in (_MAJOR, _MINOR, _MULTIPROCESSORS):
            value = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, ordinal)
            found.append(value.value)
        return f"{found[0]}.{found[1]}", found[2]

    def launch(self, stream: int, job: Callable[[], None]) -> None:
        """Queue ``job`` in a stream."""
        number = id(job)
        _jobs[number] = job
        try:
            self.call("cuLaunchHostFunc", ctypes.c_void_p(stream), _RUN_JOB, ctypes.c_void_p(number))
        except DriverError:
            del _jobs[number]
            raise
