"""Read the files that tell what a machine is, the kernel's small ones and others, whatever state they are in."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

_NAME_LIMIT = 200
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_MOST = 2**64  # the kernel counts nothing in more bits
_PAGE = 4096  # bytes: no attribute of sysfs is longer (kernel, Documentation/filesystems/sysfs.rst)
_FILE_LIMIT = 64 * 1024  # bytes; what a kernel or a package writes about itself is shorter by far
_LINKS = 40  # as the kernel allows


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


class Files:
    """The files of one machine, named by absolute path and read under ``root``: ``/``, or where its disc is mounted.

    What is absent, unreadable or no file counts as not there; nothing raises.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str, *, limit: int = _FILE_LIMIT) -> bytes | None:
        """Return the first ``limit`` bytes of a file, None when there are none to be had."""
        try:
            return read_bytes(self._host(path), limit=limit)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return None

    def text(self, path: str) -> str | None:
        """Return what `read` does as text without blanks and NULs around it; None for an empty file too."""
        return stripped(self.read(path) or b"") or None

    def exists(self, path: str) -> bool:
        """Say whether there is anything at ``path``."""
        try:
            return self._host(path).exists()
        except (OSError, ValueError):
            return False

    def names(self, folder: str) -> tuple[str, ...]:
        """Return the names in a folder, sorted; none when it cannot be listed."""
        try:
            return tuple(sorted(os.listdir(self._host(folder))))  # noqa: PTH208  # bare names are what is wanted
        except (OSError, ValueError):
            return ()

    def link(self, path: str) -> str | None:
        """Return what the link at ``path`` says, None when it is no link."""
        folder, _, name = path.rpartition("/")
        try:
            return os.readlink(self._host(folder) / name)  # noqa: PTH115  # as written, not as a path of this machine
        except (OSError, ValueError):
            return None

    def _host(self, path: str) -> Path:
        """Return where ``path`` is on this machine: links of a mounted disc lead to files of that disc."""
        if self.root == Path("/"):
            return Path(path)
        here, parts, links = self.root, _parts(path), 0
        while parts:
            part = parts.pop()
            if part == "..":
                here = self.root if here == self.root else here.parent
                continue
            here = here / part
            if here.is_symlink():
                links += 1
                if links > _LINKS:  # what is left of them, this machine would follow to files of its own
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(here)  # noqa: PTH115  # as written
                here = self.root if target.startswith("/") else here.parent
                parts += _parts(target)
        return here


def _parts(path: str) -> list[str]:
    """Return the parts of ``path``, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in {"", "."}]
