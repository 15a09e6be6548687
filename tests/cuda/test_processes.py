"""Forks, child processes and the end of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from cuda.stand_in import StandInDriver
from smart_runtime.engines.cuda import device as device_module
from smart_runtime.engines.cuda.device import Device
from smart_runtime.errors import ClosedError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


def in_forked_child(work: Callable[[], None]) -> None:
    """Do ``work`` in a forked child and fail as it fails; the child ends without finalizers."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # the parent is told that there was one
            os.write(2, f"in the child: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_child_neither_uses_nor_frees_what_is_its_parents(stand_in: StandInDriver) -> None:
    device = Device.shared()
    stream = device.stream()
    held = [device.memory(10), device.pinned(10), device.event(), stream]
    calls = stand_in.calls()

    def child() -> None:
        for refused in (Device.shared, lambda: device.memory(10), lambda: device.use().__enter__()):
            with pytest.raises(ClosedError, match=r"^CUDA does not survive a fork.* before it forks.*'spawn'$"):
                refused()
        held[0].release()
        held.clear()  # the rest goes by its finalizers

    in_forked_child(child)
    assert (stand_in.calls(), stand_in.calls_of_forked_children()) == (calls, 0)
    with device.use():
        stream.synchronize()
    for one in held:
        one.release()
    assert stand_in.leaks() == {}


def test_a_child_forked_while_the_device_is_being_opened_is_refused_too(
    stand_in: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise = device_module._check_ordinal

    def child() -> None:
        with pytest.raises(ClosedError):
            Device.shared(1)

    def in_the_middle(*args: Any) -> None:
        in_forked_child(child)
        initialise(*args)
        in_forked_child(child)

    monkeypatch.setattr(device_module, "_check_ordinal", in_the_middle)
    Device.shared().check()
    assert stand_in.calls_of_forked_children() == 0


def test_a_child_forked_before_the_driver_was_used_has_it_for_itself(stand_in: StandInDriver) -> None:
    def child() -> None:
        device = Device.shared()
        with device.use():
            device.memory(10).release()
        assert stand_in.leaks() == {}
        assert stand_in.calls() > 0

    in_forked_child(child)
    assert stand_in.calls() == 0


CHILD = """
import ctypes, threading
from smart_runtime.engines.cuda.device import Device

library = ctypes.CDLL("libcuda.so.1")
device = Device.shared()
stream, event = device.stream(), device.event()
memory, pinned = device.memory(1000), device.pinned(1000)
array = pinned.array
library.fake_delay(1000)
with device.use():
    for _ in range(50):
        stream.copy_in(memory.address, pinned.address, 1000)
        event.record(stream)
{end}
"""


@pytest.mark.parametrize(
    "end",
    [
        "",
        "import os; os._exit(0)",
        "import atexit; atexit.register(stream.release)",
        "keep = [stream]; del stream",
        # The driver may go before Python does: CUDA_ERROR_DEINITIALIZED from then on.
        "import atexit; atexit.register(library.fake_stick, 4)",
    ],
    ids=["everything is left", "at once", "released in atexit", "half is left", "the driver goes first"],
)
def test_a_process_may_end_at_any_time(stand_in: StandInDriver, end: str) -> None:
    """Work is queued and nothing is released; it ends without a word, and finds the driver by its name."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD.format(end=end)],
        env=stand_in.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_layer_loads_no_driver(stand_in: StandInDriver) -> None:
    code = "import smart_runtime.engines.cuda.device; print('libcuda' in open('/proc/self/maps').read())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=stand_in.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
