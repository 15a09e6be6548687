"""Read a bundle's files without following links: each file is opened once and what was read is what is used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from smart_runtime.errors import BundleError


def list_files(directory: Path) -> list[str]:
    """Return the names of all files under ``directory``, relative, with forward slashes, sorted.

    Raises:
        BundleError: A link, or anything that is neither a file nor a directory, lies in it.
        OSError: It cannot be listed.
    """
    names: list[str] = []
    pending = [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(directory).as_posix()
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    names.append(name)
                else:
                    raise BundleError(
                        f"expected only plain files and directories in a bundle, got {name!r}, a link or special file; "
                        "copy the bundle with its real files"
                    )
    return sorted(names)


@contextmanager
def open_plain(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a plain file for reading and yield it with its size in bytes.

    Raises:
        BundleError: It does not exist, or is a link or special file.
        OSError: The system cannot open or read it.
    """
    # O_NONBLOCK: a named pipe put in the file's place must not hang the reader.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise BundleError(f"expected {path.name} in the bundle, got none; copy or export the bundle again") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"expected {path.name} to be a plain file; copy the bundle with its real files")
        yield file, status.st_size


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a plain file of at most ``max_bytes``.

    Raises:
        BundleError: It does not exist, is a link, or is larger.
        OSError: The system cannot read it.
    """
    with open_plain(path) as (file, size):
        # Python reserves what it is asked to read: with max_bytes, more than a small board has.
        data = file.read(size + 1) if size <= max_bytes else b""
        if size > max_bytes or len(data) > max_bytes:  # the second: it grew after it was opened
            raise BundleError(
                f"expected {path.name} of at most {max_bytes} bytes, got {size}; copy or export the bundle again"
            )
        return data
