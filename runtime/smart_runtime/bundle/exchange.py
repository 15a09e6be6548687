"""Read a bundle while an export may put another one in its place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from smart_runtime.errors import BundleError

_T = TypeVar("_T")

_TRIES = 20  # a bundle is opened within milliseconds, and an export takes seconds: two in a row are rare
_PAUSE_SECONDS = 0.01


def despite_exchange(directory: Path, read: Callable[[], _T]) -> _T:
    """Return ``read()``, all of one bundle; do it again, some times, where another one came to be ``directory``.

    ``read`` must raise BundleError, as `check_not_exchanged` does, where it may have read of both. Where names cannot
    change places in one step (see `smart_export.publish`), there is for a moment no bundle under the name, and the old
    one beside it.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100  # "." has no name; links are not to be followed
    old = directory.with_name(f".{directory.name}.old")
    for _ in range(_TRIES - 1):
        before = identity(directory)
        try:
            return read()
        except (BundleError, OSError):
            after = identity(directory)
            if after == before and not (after is None and os.path.lexists(old)):
                raise
        time.sleep(_PAUSE_SECONDS)
    return read()


def identity(directory: Path) -> tuple[int, int, int] | None:
    """Return what tells the directory of this name from another one, links followed; None if there is none."""
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns  # a rename changes its time: numbers are used again


def check_not_exchanged(directory: Path, was: tuple[int, int, int] | None) -> None:
    """Raise BundleError unless ``directory`` is still the one that `identity` said: what was opened may be mixed."""
    if identity(directory) != was:
        raise BundleError(f"another bundle took the place of {str(directory)!r} while it was opened; load it again")
