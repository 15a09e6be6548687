"""Interrupts at every place of ours where one can strike, one after the other."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeAlias

import smart_runtime

# And of what runs between two lines of a function that is a context manager.
_OURS = (smart_runtime.__path__[0], contextlib.__file__)

_Place: TypeAlias = tuple[CodeType, int, str]


class Stop(BaseException):
    """What Ctrl-C, or one thread to another, throws in."""


class Places:
    """Counts, as the profiler, how often an interrupt could strike in code of ours; raises `Stop` the ``at``-th time.

    Python looks for signals and for exceptions from other threads where a function of its own begins and where a call
    of C has returned (and at backward jumps, which loops here make between two such places). ``first`` has the number
    at which each place was reached for the first time.
    """

    def __init__(self, *, at: int = 0) -> None:
        self.first: dict[_Place, int] = {}
        self._seen = 0
        self._at = at

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in {"call", "c_return"} or not frame.f_code.co_filename.startswith(_OURS):
            return
        # What is thrown into a generator looks like the beginning of a function here, but is none to an interrupt.
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR and frame.f_lasti > 8:
            return
        self._seen += 1
        self.first.setdefault((frame.f_code, frame.f_lasti, event), self._seen)
        if self._seen == self._at:
            sys.setprofile(None)
            raise Stop


def places(work: Callable[[], object]) -> list[int]:
    """Return the numbers at which ``work`` can be struck, one a place in the code."""
    seen = Places()
    _profiled(work, seen)
    return sorted(seen.first.values())


def struck(work: Callable[[], object], *, at: int) -> Stop | None:
    """Do ``work``, struck the ``at``-th time that it can be; None if it ended before."""
    try:
        _profiled(work, Places(at=at))
    except Stop as error:
        return error
    return None


def _profiled(work: Callable[[], object], profiler: Places) -> None:
    before = sys.getprofile()
    sys.setprofile(profiler)
    try:
        work()
    finally:
        sys.setprofile(before)


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208  # not a folder of files
