"""Files: written so that a reader, or a crash, sees the old or the new one; told by their bytes; kept in a cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from smart_common.errors import OutputError, SmartError

_T = TypeVar("_T")

_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN}
_PIECE = 2**20  # bytes read at once
_MOST_OF_NAME = 200  # bytes; a file system has room for 255, and more is added

_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write beside ``path``; at the end it is flushed to the disk and renamed over it.

    Of several processes that write the same file the last one to end wins.

    Raises:
        OutputError: ``path`` is there and is no plain file: a device would be lost, a folder is somebody's.
        OSError: The system refuses, for want of room for one; it names ``path``, which is as it was.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no plain file and would be replaced by one; name another")
    try:
        with _beside(path, _new_file) as (beside, descriptor), os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            beside.replace(path)
    except OSError as error:
        if error.filename is None or str(error.filename).endswith(".tmp"):
            error.filename = str(path)  # a full disk does not say for which file, and others name the one beside it
        raise


@contextmanager
def new_folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, to be filled and renamed; it is removed if it is still there at the end.

    Raises:
        OSError: The system refuses.
    """
    with _beside(path, _new_folder) as (beside, _):
        yield beside


@contextmanager
def owning(path: Path) -> Iterator[bool]:
    """Yield whether this caller, of all threads and processes, may write ``path`` while the block runs.

    The lock is that of a file beside it, which goes at the end. If the owner dies, the lock goes with it.

    Raises:
        OSError: The system refuses to make that file.
    """
    lock = path.with_name(f".{_cut(path.name)}.lock")
    while True:
        with locked(lock) as mine:
            if mine is None:  # an owner removed it between our opening and locking it
                continue
            try:
                yield mine
            finally:
                if mine:
                    lock.unlink(missing_ok=True)
            return


@contextmanager
def locked(file: Path) -> Iterator[bool | None]:
    """Yield whether the lock of ``file``, which is made if need be, is this caller's while the block runs.

    None says that the file was removed by its last owner meanwhile. Nobody is waited for, and no link is followed.

    Raises:
        OSError: The system refuses to make or open it.
    """
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(file, os.O_RDWR | flags, 0o644)  # NFS locks for writers alone
    except PermissionError:  # another user's
        descriptor = os.open(file, os.O_RDONLY | flags, 0o644)
    try:
        mine = _lock(descriptor)
        yield mine if not mine or _is_named(descriptor, file) else None
    finally:
        os.close(descriptor)


@contextmanager
def holding(file: Path, *, on_wait: Callable[[int | None], None]) -> Iterator[None]:
    """Hold the lock of ``file``, which is made if need be and stays there, while the block runs.

    Another holder, a thread or a process, is waited for, after ``on_wait`` was told the ID of its process, None where
    it cannot be known. If the holder dies, the lock goes with it. No link is followed.

    Raises:
        OSError: The system refuses to make or open it.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if not _lock(descriptor):
                on_wait(_holder(descriptor))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_named(descriptor, file):  # somebody tidied it up between our opening and locking it
                continue
            with suppress(OSError):  # a full disk: nobody learns who holds it, but it is held
                os.pwrite(descriptor, b"%-19d\n" % os.getpid(), 0)
            try:
                yield
            finally:
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
            return
        finally:
            os.close(descriptor)


def _holder(descriptor: int) -> int | None:
    try:
        return int(os.pread(descriptor, 20, 0))
    except (OSError, ValueError):  # it has not said so yet
        return None


@contextmanager
def _beside(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """Yield what ``make`` makes beside ``path``, locked, and its descriptor; it is removed if it is there at the end.

    Nobody can foretell its name, so nobody can put a link in its way. What killed processes left is removed.
    """
    _remove_leavings(path)
    while True:
        beside = path.with_name(f".{_cut(path.name)}.{os.urandom(8).hex()}.tmp")
        descriptor = make(beside)
        try:
            if not (_lock(descriptor) and _is_named(descriptor, beside)):
                continue  # another process took it for leavings before it was locked
            try:
                yield beside, descriptor
            finally:
                _remove(beside)
            return
        finally:
            os.close(descriptor)


def _new_file(beside: Path) -> int:
    return os.open(beside, os.O_WRONLY | _NEW, 0o666)


def _new_folder(beside: Path) -> int:
    beside.mkdir()
    return os.open(beside, os.O_DIRECTORY | _OLD)


def _remove_leavings(path: Path) -> None:
    """Remove what processes that were killed have left beside ``path``: a living one holds a lock on what it makes."""
    name = re.compile(rf"\.{re.escape(_cut(path.name))}\.[0-9a-f]{{16}}\.tmp")
    entries: list[str] = []
    with suppress(OSError):  # one may be allowed to write into a folder and not to list it
        entries = os.listdir(path.parent)  # noqa: PTH208  # names alone
    for left in filter(name.fullmatch, entries):
        with suppress(OSError):  # a link, say, which is not ours
            descriptor = os.open(path.with_name(left), _OLD)
            try:
                if _lock(descriptor, without=False) and _is_named(descriptor, path.with_name(left)):
                    _remove(path.with_name(left))
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        from shutil import rmtree  # noqa: PLC0415  # its decompressors take long to import

        rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(descriptor: int, *, without: bool = True) -> bool:
    """Say whether an open file or folder is now locked for this process; the lock goes when the last copy is closed.

    ``without`` is the answer of a file system that has no locks, which leaves it to its users to start one writer only.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return without and error.errno not in _BUSY
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _cut(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_MOST_OF_NAME])


def digest_and_value(file: Path, read: Callable[[Path], _T]) -> tuple[str, _T]:
    """Return the SHA-256 of ``file``, hexadecimal, and what ``read`` made of the same bytes.

    Raises:
        SmartError: The file was changed or replaced meanwhile.
        OSError: The system refuses; else whatever ``read`` raises.
    """
    before = _state(file)
    value = read(file)
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while piece := opened.read(_PIECE):
            digest.update(piece)
    if _state(file) != before:
        raise SmartError(f"{file} was changed while it was read; run again once it is whole")
    return digest.hexdigest(), value


def _state(file: Path) -> tuple[int, ...] | None:
    """Return what changes with every write to a file, and when another one takes its name."""
    try:
        status = file.stat()
    except OSError:  # for ``read`` to say
        return None
    # Whoever writes can set the time of the last write, but not that of the last change.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def default_cache_dir() -> Path | None:
    """Return ``$XDG_CACHE_HOME/smart-edge``, or ``~/.cache/smart-edge`` where that is not set; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG base directory specification has relative paths ignored
        return Path(base) / "smart-edge"
    try:
        return Path.home() / ".cache" / "smart-edge"
    except RuntimeError:  # a container, say, whose user no passwd file knows
        return None
