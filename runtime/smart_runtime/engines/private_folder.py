"""A folder of files that are run as code: only what this user alone could have put there is read."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from smart_runtime.errors import EngineError

ELSEWHERE = "name another one with cache_dir or XDG_CACHE_HOME"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in the file's place must not hang us
_LINKS = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REACHED = re.compile(r"/proc/self/fd/\d+/")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class PrivateFolder:
    """A folder that is made with mode 0700, and refused where it is a link, another user's, or others may write there.

    Attributes:
        path: Where it is, absolute.
        has_own_parent: Whether the folder above it is smart-edge's too, and made and checked likewise; since that one
            is made by whoever comes first, its group may write there, as many umasks have it.
    """

    path: Path
    has_own_parent: bool = False

    @contextmanager
    def opened(self, *, create: bool = False) -> Iterator[Path | None]:
        """Yield a name by which the checked folder is reached whatever happens to its path; None if there is none.

        Raises:
            EngineError: It cannot be used.
        """
        with ExitStack() as descriptors:
            with self.refusing():
                place = self._checked(descriptors, create=create)
            yield place

    def _checked(self, descriptors: ExitStack, *, create: bool) -> Path | None:
        paths = [self.path.parent, self.path] if self.has_own_parent else [self.path]
        outside = paths[0].parent
        if create:
            outside.mkdir(parents=True, exist_ok=True)
        try:
            inside = os.open(outside, _FOLDER & ~os.O_NOFOLLOW)  # above ours a link is the user's own word
            descriptors.callback(os.close, inside)
            for path in paths:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(path.name, 0o700, dir_fd=inside)
                try:
                    inside = os.open(path.name, _FOLDER, dir_fd=inside)
                except OSError as error:
                    error.filename = str(path)
                    raise
                descriptors.callback(os.close, inside)
                _check_ours(inside, path, forbidden=_OTHERS_MAY_WRITE if path == self.path else stat.S_IWOTH)
        except FileNotFoundError:
            if create:
                raise
            return None
        return through(inside)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Turn what the system refuses into one sentence.

        Raises:
            EngineError: The system refused something in the block.
        """
        try:
            yield
        except OSError as error:
            if error.errno in _LINKS:
                raise EngineError(
                    f"there is a link or special file where {self._named(error)} should be plain; remove it, or "
                    f"{ELSEWHERE}"
                ) from error
            remedy = "make room there" if error.errno in _NO_ROOM else "mend that"
            raise EngineError(
                f"the folder of built engines {self.path} cannot be used ({error.strerror or error}); {remedy}, or "
                f"{ELSEWHERE}"
            ) from error

    def _named(self, error: OSError) -> Path:
        """Return the path that the system has refused, instead of the name by which it was reached."""
        name = error.filename if isinstance(error.filename, str) else ""
        return self.path / _REACHED.sub("", name)

    @contextmanager
    def subfolder(self, place: Path, name: str) -> Iterator[int]:
        """Yield a descriptor of the folder ``name`` in ``place``, checked.

        Raises:
            EngineError: It is another user's, or others may write there.
            OSError: There is none, or it is a link.
        """
        descriptor = os.open(place / name, _FOLDER)
        try:
            _check_ours(descriptor, self.path / name)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def file(self, folder: int, name: str, *, shown: str) -> Iterator[tuple[BinaryIO, int]]:
        """Yield the file ``name`` in an open ``folder``, checked, and its size; errors call it ``shown``.

        Raises:
            EngineError: It is another user's, or others may write into it, or it is no plain file.
            OSError: There is none, or it is a link.
        """
        try:
            descriptor = os.open(name, _FILE, dir_fd=folder)
        except OSError as error:
            error.filename = str(self.path / shown)
            raise
        try:
            status = _check_ours(descriptor, self.path / shown)
            if not stat.S_ISREG(status.st_mode):
                raise EngineError(f"{self.path / shown} is no plain file; remove it")
            with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                yield file, status.st_size
        finally:
            os.close(descriptor)


def through(descriptor: int) -> Path:
    """Return a name of an open folder: whatever takes a path reaches this very folder by it."""
    return Path(f"/proc/self/fd/{descriptor}")


def _check_ours(descriptor: int, path: Path, *, forbidden: int = _OTHERS_MAY_WRITE) -> os.stat_result:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise EngineError(
            f"{path} belongs to another user, and built engines are code; remove it, or name a folder of your own "
            "with cache_dir or XDG_CACHE_HOME"
        )
    if status.st_mode & forbidden:
        raise EngineError(
            f"others may write into {path}, and built engines are code; remove it, or `chmod go-w` it if you trust "
            "what lies there"
        )
    return status
