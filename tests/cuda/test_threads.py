"""Many threads at once, on the runtime's side and on the driver's."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cuda.stand_in import HERE, StandInDriver, build, compile_c
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.resources import _Resource


def at_once(count: int, work: Callable[[int], None]) -> None:
    """Do ``work`` in so many threads, each with its number, and raise the first error."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:  # raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_share_a_device_and_each_has_its_own_bytes(stand_in: StandInDriver) -> None:
    stand_in.delay(20)

    def work(number: int) -> None:
        for turn in range(15):
            device = Device.shared(number % 2)
            with device.use():
                memory, pinned, back, stream = device.memory(64), device.pinned(64), device.pinned(64), device.stream()
                pinned.array[:] = value = 16 * number + turn
                stream.copy_in(memory.address, pinned.address, 64)
                stream.copy_out(back.address, memory.address, 64)
                stream.synchronize()
                assert np.all(back.array == value)
            for one in (stream, memory, pinned, back):
                one.release()

    at_once(8, work)
    assert stand_in.leaks() == {}


def release_all(held: list[_Resource], _: int) -> None:
    for one in held:
        one.release()


def test_what_many_threads_release_is_freed_once(stand_in: StandInDriver) -> None:
    device = Device.shared()
    for _ in range(30):
        held: list[_Resource] = [device.memory(8), device.pinned(8), device.stream(), device.event()]
        start = stand_in.calls()
        at_once(4, partial(release_all, held))
        freed = [function for function in stand_in.trace(start) if "Free" in function or "Destroy" in function]
        assert sorted(freed) == ["cuEventDestroy_v2", "cuMemFreeHost", "cuMemFree_v2", "cuStreamDestroy_v2"]
    assert stand_in.leaks() == {}


def test_the_driver_without_a_device_has_no_data_races(tmp_path: Path) -> None:
    folder = build("thread")
    program = tmp_path / "threads"
    compile_c(program, "-fsanitize=thread", HERE / "threads.c", folder / "libcuda.so.1", f"-Wl,-rpath,{folder}")
    # The sanitizer of older compilers does not know the layout of memory that newer kernels choose by chance.
    for command in ([str(program)], ["setarch", "-R", str(program)]):
        done = subprocess.run(
            command, env={"TSAN_OPTIONS": "exitcode=66"}, capture_output=True, text=True, timeout=120, check=False
        )
        if "unexpected memory mapping" not in done.stderr:
            break
    else:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
