"""After a fork an engine is unusable in the child: its threads stayed behind, and to free it would wait for them."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any, Protocol


class Forkable(Protocol):
    """What must know that it is in a forked child now."""

    def after_fork_in_child(self) -> None:
        """Refuse all further use, take no lock that another thread may have held, and free nothing."""
        ...


_guarded: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.Lock()
_hooks: list[None] = []


def guard(one: Forkable) -> None:
    """Tell ``one``, for as long as it lives, when it finds itself in a forked child."""
    with _lock:
        if not _hooks:  # at the first model and not on import: the hooks stay for good
            os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_in_child)
            _hooks.append(None)
        _guarded.add(one)


def never_free(objects: Iterable[object]) -> None:
    """Keep ``objects`` past the end of the interpreter, which frees what modules hold."""
    for one in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _after_in_child() -> None:
    _lock.release()
    for one in list(_guarded):
        one.after_fork_in_child()
