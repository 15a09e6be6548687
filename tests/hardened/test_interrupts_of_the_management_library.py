"""NVIDIA's management library takes a lock of its own, which an interrupt of who asks must not leave locked."""

from __future__ import annotations

import ctypes
import threading
from types import ModuleType

import pytest

from hardened.striking import Stop
from runtime.fakes import TIMEOUT, Thread
from smart_devices.nvml import open_gpus


class NoDriverError(Exception):
    pass


def test_an_interrupt_of_who_asks_leaves_the_library_unlocked() -> None:
    """The lock is taken and freed as nvidia-ml-py 13.615 does it, and the interrupt comes in between."""
    lock, inside, go_on = threading.Lock(), threading.Event(), threading.Event()

    def initialise() -> None:
        assert lock.acquire(timeout=TIMEOUT)
        inside.set()
        assert go_on.wait(TIMEOUT)
        lock.release()
        raise NoDriverError("no driver")

    library = ModuleType("pynvml")
    vars(library).update(nvmlInit=initialise, NVMLError=NoDriverError)
    asking = Thread(lambda: open_gpus(load=lambda _: library))
    assert inside.wait(TIMEOUT)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(asking.ident or 0), ctypes.py_object(Stop))
    go_on.set()
    with pytest.raises(Stop):
        asking.outcome()
    assert open_gpus(load=lambda _: library) == "no NVIDIA graphics card that answers (NVML: no driver)"
