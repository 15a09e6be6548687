"""Read a bundle's files without following links: each file is opened once and what was read is what is used.

A name is opened folder by folder below the bundle's root, so that no folder can be swapped for a link on the way. The
root itself may be a link: it is the user's own word for the bundle.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from smart_runtime.errors import BundleError

MAX_ENTRIES = 4096
"""No bundle has more files and folders: three graphs, their weights and a few engines are below a hundred."""

MAX_DEPTH = 8
"""No file of a bundle lies below more folders, the root not counted."""

MAX_FILE_BYTES = 16 * 2**30
"""No file of a bundle is larger: the weights of a classifier are below 2 GiB in float32."""

_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
# O_NONBLOCK: a named pipe put in the file's place must not hang the reader.
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_REAL_FILES = "copy the bundle with its real files"


def list_files(directory: Path) -> list[str]:
    """Return the names of all files under ``directory``, relative, with forward slashes, sorted.

    Raises:
        BundleError: A link, or anything that is neither a file nor a directory, lies in it; or more than `MAX_ENTRIES`
            files and folders, or folders deeper than `MAX_DEPTH`.
        OSError: It cannot be listed.
    """
    names: list[str] = []
    pending = [""]
    entries = 0
    while pending:
        folder = pending.pop()
        for entry in _entries(directory, folder):
            entries += 1
            if entries > MAX_ENTRIES:
                raise BundleError(
                    f"expected at most {MAX_ENTRIES} files and folders in a bundle, got more; give a bundle's directory"
                )
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if name.count("/") >= MAX_DEPTH:
                    raise BundleError(
                        f"expected folders at most {MAX_DEPTH} deep in a bundle, got deeper ones; "
                        "give a bundle's directory"
                    )
                pending.append(name)
            elif entry.is_file(follow_symlinks=False):
                names.append(name)
            else:
                raise BundleError(
                    f"expected only plain files and directories in a bundle, got {name!r}, a link or special file; "
                    f"{_REAL_FILES}"
                )
    return sorted(names)


def _entries(directory: Path, folder: str) -> Iterator[os.DirEntry[str]]:
    with _opened(directory, folder) as descriptor, os.scandir(descriptor) as entries:
        yield from entries


def open_plain(directory: Path, name: str) -> tuple[BinaryIO, int]:
    """Open the plain file ``name`` below ``directory`` for reading; return it, for the caller to close, and its size.

    The file is not buffered; its descriptor is closed in processes that this one starts.

    Raises:
        BundleError: It does not exist, or it, or a folder on the way to it, is a link or special.
        OSError: The system cannot open or read it.
    """
    folder, _, last = name.rpartition("/")
    with _opened(directory, folder) as inside, _refusing_links(name):
        # The file owns its descriptor from the first: whoever closes that too may close another thread's file.
        file = open(last, "rb", buffering=0, opener=lambda name, _: os.open(name, _FILE, dir_fd=inside))  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            _refuse_special(name)
    except BaseException:
        file.close()
        raise
    return file, status.st_size


@contextmanager
def _opened(directory: Path, folder: str) -> Iterator[int]:
    """Yield a descriptor of ``folder`` below ``directory``, "" for itself, opened part by part."""
    try:
        descriptor = os.open(directory, _FOLDER)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"no bundle directory at {str(directory)!r}; copy or export the bundle again") from error
    try:
        for part in filter(None, folder.split("/")):
            with _refusing_links(folder):
                inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            descriptor, outer = inner, descriptor
            os.close(outer)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _refusing_links(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BundleError(f"no {name!r} in the bundle; copy or export the bundle again") from error
    except OSError as error:
        # A link in the place of a file, one in the place of a folder, a socket, a folder in the place of a file.
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR}:
            _refuse_special(name)
        raise


def _refuse_special(name: str) -> NoReturn:
    raise BundleError(
        f"expected only plain files and directories in a bundle, got {name!r}, a link or special file; {_REAL_FILES}"
    )


def read_bounded(directory: Path, name: str, *, max_bytes: int) -> bytes:
    """Return the content of the plain file ``name`` below ``directory``, of at most ``max_bytes``.

    Raises:
        BundleError: It does not exist, is or lies behind a link, or is larger.
        OSError: The system cannot read it.
    """
    file, size = open_plain(directory, name)
    with file:
        check_size(name, size, max_bytes=max_bytes)
        data = read_at_most(file, size + 1)  # one more than it had, so that one that grew is not taken for the old one
        check_size(name, len(data), max_bytes=max_bytes)
        return data


def read_at_most(file: BinaryIO, count: int) -> bytes:
    """Return the first ``count`` bytes of an open file, fewer where it ends; its position is not used or moved."""
    pieces: list[bytes] = []
    offset = 0
    # Linux reads at most 2**31 - 4096 bytes at once, so this loops for large files only.
    while offset < count and (piece := os.pread(file.fileno(), count - offset, offset)):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def check_size(name: str, size: int, *, max_bytes: int) -> None:
    """Raise BundleError if ``size`` is more than ``max_bytes``."""
    if size > max_bytes:
        raise BundleError(
            f"expected {name!r} of at most {max_bytes} bytes, got {size}; copy or export the bundle again"
        )
