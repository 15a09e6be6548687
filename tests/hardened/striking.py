"""Interrupts: at every place of ours where one can strike, one after the other; and at any moment."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

import smart_runtime
from runtime.fakes import TIMEOUT

# And of what runs between two lines of a function that is a context manager.
_OURS = (smart_runtime.__path__[0], contextlib.__file__)
# Stands in for a library of C++, in the middle of which nothing strikes.
_OF_A_LIBRARY = str(Path(__file__).parents[1] / "trt/fake_tensorrt")

_Place: TypeAlias = tuple[CodeType, int, str]


class Stop(BaseException):
    """What Ctrl-C, or one thread to another, throws in."""


def _stop() -> None:
    raise Stop


class Places:
    """Counts, as the profiler, how often an interrupt could strike in code of ours; does ``then`` the ``at``-th time.

    By default that raises `Stop`; what does not is as a signal handler, which returns to where it came from.

    Python looks for signals and for exceptions from other threads where a function of its own begins and where a call
    of C has returned (and at backward jumps, which loops here make between two such places). ``reached`` has the
    numbers at which each place was reached.
    """

    def __init__(self, *, at: int = 0, then: Callable[[], object] = _stop) -> None:
        self.reached: dict[_Place, list[int]] = {}
        self._then = then
        self._seen = 0
        self._at = at

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in {"call", "c_return"} or not frame.f_code.co_filename.startswith(_OURS):
            return
        if (
            event == "call"
            and frame.f_code.co_flags & inspect.CO_GENERATOR
            and frame.f_lasti > 8
            and not _goes_on(frame)
        ):
            return
        if _in_a_library(frame):
            return
        self._seen += 1
        self.reached.setdefault((frame.f_code, frame.f_lasti, event), []).append(self._seen)
        if self._seen == self._at:
            sys.setprofile(None)
            self._then()


def _goes_on(frame: FrameType) -> bool:
    """Say whether a generator goes on after the body of its ``with`` block, where an interrupt can strike it too.

    What is thrown into one looks like that to a profiler, and is none to an interrupt.
    """
    caller = frame.f_back
    if caller is None or caller.f_code is not contextlib._GeneratorContextManager.__exit__.__code__:
        return False
    return caller.f_locals["typ"] is None


def places(work: Callable[[], object], *, function: str | None = None) -> list[int]:
    """Return the numbers at which ``work`` can be struck, one a place in the code; all of those in a ``function``."""
    seen = Places()
    _profiled(work, seen)
    if function is None:
        return sorted(numbers[0] for numbers in seen.reached.values())
    return sorted(number for (code, *_), all_ in seen.reached.items() if code.co_name == function for number in all_)


def struck(work: Callable[[], object], *, at: int) -> Stop | None:
    """Do ``work``, struck the ``at``-th time that it can be; None if it ended before."""
    try:
        _profiled(work, Places(at=at))
    except Stop as error:
        return error
    return None


def handled(work: Callable[[], object], handler: Callable[[], object], *, at: int) -> None:
    """Do ``work``, interrupted by a signal handler the ``at``-th time that it can be."""
    _profiled(work, Places(at=at, then=handler))


def _profiled(work: Callable[[], object], profiler: Places) -> None:
    before = sys.getprofile()
    sys.setprofile(profiler)
    try:
        work()
    finally:
        sys.setprofile(before)


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208  # not a folder of files


def interrupt(
    work: Callable[[], object], *, apart_s: float, times: int = 300, after_each: Callable[[], object] = lambda: None
) -> None:
    """Do what Ctrl-C does while ``work`` is done over and over, each time ``apart_s`` later than the last."""
    struck_times = 0

    def handler(_: int, frame: FrameType | None) -> None:
        nonlocal struck_times
        if _in_a_library(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.00005)  # it would be noticed when that has returned
            return
        struck_times += 1
        raise Stop

    def until_struck(i: int) -> None:  # Python 3.13 has nothing catch what strikes at the end of a loop beside it
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + i * apart_s)
        while struck_times == i:  # not for ever: Python ignores what strikes inside of a finalizer
            work()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for i in range(times):
            with contextlib.suppress(Stop):
                until_struck(i)
            after_each()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert struck_times == times


def strike(thread: threading.Thread) -> None:
    """Throw `Stop` into a thread until it ends: Python ignores one that strikes inside of a finalizer."""
    assert thread.ident is not None
    end = time.monotonic() + TIMEOUT
    while thread.is_alive():
        assert time.monotonic() < end, f"the thread waits for ever:\n{_where(thread.ident)}"
        # In a library it may run on a little: else it gives up Python's lock there, and is looked at there, each time.
        thread.join(timeout=1 if throw(thread.ident) else 0.001)


def _where(thread: int) -> str:
    return "".join(traceback.format_stack(sys._current_frames().get(thread)))


def throw(thread: int) -> bool:
    """Throw `Stop` into a thread, unless it is in the middle of a library."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TIMEOUT)  # what is looked at must still be so when it is thrown
    try:
        if _in_a_library(sys._current_frames().get(thread)):
            return False
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Stop))
        return True
    finally:
        sys.setswitchinterval(before)


def _in_a_library(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_OF_A_LIBRARY):
            return True
        frame = frame.f_back
    return False
