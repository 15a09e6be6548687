"""The CUDA driver without a device, built and steered; other tests import the fixture ``stand_in`` from here."""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from smart_runtime.engines.cuda import device, driver

HERE = Path(__file__).resolve().parent
KINDS = ("memory", "pinned", "streams", "events", "contexts")  # in the order of world.h
_FLAGS = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wmissing-prototypes", "-fvisibility=hidden"]


def headers() -> Path:
    """The folder of NVIDIA's cuda.h; the test is skipped where the package is missing."""
    found = importlib.util.find_spec("nvidia.cuda_runtime") if importlib.util.find_spec("nvidia") else None
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs NVIDIA's cuda.h: pip install nvidia-cuda-runtime-cu12")
    return Path(next(iter(found.submodule_search_locations))) / "include"


def compile_c(output: Path, *arguments: str | Path) -> None:
    """Compile against cuda.h; the test is skipped where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which builds the driver without a device")
    command = ["gcc", *_FLAGS, f"-I{headers()}", *map(str, arguments), "-o", str(output), "-lpthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@lru_cache
def build(sanitizer: str | None = None) -> Path:
    """The folder with ``libcuda.so.1``, built once; ``sanitizer`` is a value of gcc's -fsanitize.

    The library has no soname: once loaded by its path, it is not taken for the real one by whoever asks for
    ``libcuda.so.1`` later in this process. A child process finds it under that name by LD_LIBRARY_PATH.
    """
    folder = Path(tempfile.mkdtemp(prefix="stand-in-driver-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options = ["-fPIC", "-shared", *([f"-fsanitize={sanitizer}"] if sanitizer else [])]
    compile_c(folder / "libcuda.so.1", *options, HERE / "world.c", HERE / "libcuda.c")
    return folder


class StandInDriver:
    """The driver without a device, with what only tests can ask of it.

    Args:
        library: It, loaded; by default the one that this process has built.
    """

    def __init__(self, library: ctypes.CDLL | None = None) -> None:
        self.path = build() / "libcuda.so.1" if library is None else Path(library._name)
        self.library = ctypes.CDLL(str(self.path)) if library is None else library
        for name in (
            "live",
            "calls",
            "calls_of_forked_children",
            "pageable_copies",
            "freed_in_use",
            "unknown_frees",
            "touched",
        ):
            getattr(self.library, f"fake_{name}").restype = ctypes.c_long
        self.library.fake_used.restype = ctypes.c_size_t
        self.library.fake_traced.restype = ctypes.c_char_p
        self.library.fake_foreign_context.restype = ctypes.c_void_p

    def reset(self) -> None:
        """Forget everything, memory too; nobody may be using the driver."""
        self.library.fake_reset()

    def fail(self, after: int, code: int, *, stays: bool = False) -> None:
        """Let the call after ``after`` others fail; with ``stays`` all that follow too."""
        self.library.fake_fail(ctypes.c_long(after), code, int(stays))

    def stick(self, code: int) -> None:
        """Let every call fail from now on; 0 ends that."""
        self.library.fake_stick(code)

    def delay(self, microseconds: int) -> None:
        """Let each piece of a stream's work wait up to so long before it begins."""
        self.library.fake_delay(microseconds)

    def total(self, size: int, ordinal: int = 0) -> None:
        """Give a device ``size`` bytes of memory."""
        self.library.fake_total(ordinal, ctypes.c_size_t(size))

    def device(
        self, *, ordinal: int = 0, name: str = "Stand-in", capability: tuple[int, int] = (8, 7),
        multiprocessors: int = 16, integrated: bool = False,
    ) -> None:  # fmt: skip
        """Say what a device is; before anything asks for it."""
        self.library.fake_device(ordinal, name.encode(), *capability, multiprocessors, int(integrated))

    def used(self, ordinal: int = 0) -> int:
        """The bytes of a device that are allocated."""
        return int(self.library.fake_used(ordinal))

    def live(self) -> dict[str, int]:
        """How much of every kind there is now; of contexts, how often primary ones are retained."""
        return {kind: int(self.library.fake_live(number)) for number, kind in enumerate(KINDS)}

    def calls(self) -> int:
        """How many calls of the driver there were."""
        return int(self.library.fake_calls())

    def calls_of_forked_children(self) -> int:
        """How many calls forked children of the process that uses the driver have made, but for its version."""
        return int(self.library.fake_calls_of_forked_children())

    def trace(self, start: int = 0) -> list[str]:
        """The functions that were called, from the one with that number on."""
        return [self.library.fake_traced(ctypes.c_long(call)).decode() for call in range(start, self.calls())]

    def pageable_copies(self) -> int:
        """How many copies had an end in memory of the host that is not pinned."""
        return int(self.library.fake_pageable_copies())

    def faults(self) -> dict[str, int]:
        """What the real driver would have let pass: blocks freed in use, and freed ones that were written to."""
        names = ("freed_in_use", "touched")
        return {name: int(getattr(self.library, f"fake_{name}")()) for name in names}

    def unknown_frees(self) -> int:
        """How many calls would have freed what is not there; one that fails has freed it all the same."""
        return int(self.library.fake_unknown_frees())

    def foreign_context(self) -> int:
        """A context on device 0 that is not its primary one."""
        return int(self.library.fake_foreign_context())

    def environment(self) -> dict[str, str]:
        """An environment for a child process in which the driver is this one."""
        old = os.environ.get("LD_LIBRARY_PATH")
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(self.path.parent), old)))}

    def leaks(self) -> dict[str, Any]:
        """What is still there, or went wrong; empty if all is well.

        A primary context that is retained is no leak: the runtime keeps it to the end of the process, as CUDA's own
        libraries do. `live` counts them.
        """
        found = {**self.live(), **self.faults(), "bytes": self.used(0) + self.used(1)}
        return {what: count for what, count in found.items() if count and what != "contexts"}


@lru_cache
def this_process() -> StandInDriver:
    """The one of this process, which no two tests use at once."""
    return StandInDriver()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDriver]:
    """The driver without a device in place of NVIDIA's, as new, and the runtime as if it had called none yet."""
    one = this_process()
    one.reset()
    processes: dict[int, device._Process] = {}
    monkeypatch.setattr(driver, "LIBRARY", str(one.path))
    monkeypatch.setattr(device, "_processes", processes)
    driver.load_driver.cache_clear()
    try:
        yield one
    finally:
        driver.load_driver.cache_clear()
        # What a failed test leaves behind is freed some time, and must not free another test's by then.
        for process in processes.values():
            for left in process.devices.values():
                left._pid = -1
        one.reset()
