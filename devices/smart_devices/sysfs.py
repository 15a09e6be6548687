"""Read the small files in which the kernel tells of the machine."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

_NAME_LIMIT = 200
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_MOST = 2**64  # the kernel counts nothing in more bits
_PAGE = 4096  # bytes: no attribute of sysfs is longer (kernel, Documentation/filesystems/sysfs.rst)


def read_text(path: Path) -> str:
    """Return the stripped text of an attribute, of at most a page.

    A sensor whose device is switched off fails with EAGAIN, which Python's own file objects turn into a TypeError or an
    empty text; so it is read without them, twice if need be.

    Raises:
        OSError: It is absent (FileNotFoundError), for root only (PermissionError), or does not answer now.
    """
    try:
        return stripped(read_bytes(path))
    except BlockingIOError:
        return stripped(read_bytes(path))


def read_text_or_none(path: Path) -> str | None:
    """Return what `read_text` does; None where it raises, and for an empty text."""
    try:
        return read_text(path) or None
    except OSError:
        return None


def read_number(path: Path) -> int:
    """Return the whole number in an attribute, of at most 64 bits.

    Raises:
        OSError: As `read_text`.
        ValueError: It holds something else.
    """
    text = read_text(path)
    if not _NUMBER.fullmatch(text) or abs(int(text)) >= _MOST:
        raise ValueError(f"got {printable(text)!r}")
    return int(text)


def read_number_or_none(path: Path) -> int | None:
    """Return what `read_number` does; None where it raises."""
    try:
        return read_number(path)
    except (OSError, ValueError):
        return None


def read_bytes(path: Path, *, limit: int = _PAGE) -> bytes:
    """Return the first ``limit`` bytes of a file, without waiting for a writer where it is a pipe.

    Raises:
        OSError: As `read_text`, and for what is no file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    parts, left = [], limit
    try:
        while left and (part := os.read(descriptor, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    except TypeError as error:  # as some versions of Python have it
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), os.fspath(path)) from error
    finally:
        os.close(descriptor)
    return b"".join(parts)


def printable(text: str) -> str:
    """Return a name out of a file as people may be shown it: no control characters, no more than 200 characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:_NAME_LIMIT])


def stripped(data: bytes) -> str:
    """Return a file's bytes as text, whatever is no UTF-8 replaced, without blanks and NULs around it."""
    return data.decode("utf-8", errors="replace").strip("\0 \t\r\n")
