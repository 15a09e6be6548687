"""When a program ends, workers leave their engines first.

At the end Python stops daemon threads where they would take its lock again. In the middle of an engine of C++ that is
an exception which nobody catches, and the process aborts.
"""

from __future__ import annotations

import atexit
import weakref
from typing import Any, Protocol

_LEAVE_S = 2.0  # that a program which ends waits for one worker at most

_guarded: weakref.WeakSet[Any] = weakref.WeakSet()
_hooks: list[None] = []


class Ending(Protocol):
    """What has a worker."""

    def end(self, timeout: float) -> None:
        """Stop, and wait for at most ``timeout`` seconds until the worker has left its engine."""
        ...


def guard(one: Ending) -> None:
    """End ``one``, if it still lives, when the program ends."""
    if not _hooks:
        atexit.register(_end_all)
        _hooks.append(None)
    _guarded.add(one)


def _end_all() -> None:
    for one in list(_guarded):
        one.end(_LEAVE_S)
