"""Files: written so that a reader, or a crash, sees the old or the new one; told by their bytes; kept in a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write beside ``path``; at the end it is flushed to the disk and renamed over it.

    ``shared`` says that other processes may be writing the same file: the last one to end wins.

    Raises:
        OSError: if the system refuses, for want of room for one; it names ``path``, which is as it was.
    """
    # Else one name, so that what a killed process left is written over.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        if error.filename is None:  # a full disk does not say for which file
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def digest_of_file(file: Path) -> str:
    """Return the SHA-256 of ``file``, hexadecimal; raises OSError if the system refuses."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def default_cache_dir() -> Path | None:
    """Return ``$XDG_CACHE_HOME/smart-edge``, or ``~/.cache/smart-edge`` where that is not set; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG base directory specification has relative paths ignored
        return Path(base) / "smart-edge"
    try:
        return Path.home() / ".cache" / "smart-edge"
    except RuntimeError:  # a container, say, whose user no passwd file knows
        return None
