"""Read the files that tell what a machine is, whatever state they are in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from smart_devices.sysfs import read_bytes, stripped

_LIMIT = 64 * 1024  # bytes; what a kernel or a package writes about itself is shorter by far
_LINKS = 40  # as the kernel allows


class Files:
    """The files of one machine, named by absolute path and read under ``root``: ``/``, or where its disc is mounted.

    What is absent, unreadable or no file counts as not there; nothing raises.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str, *, limit: int = _LIMIT) -> bytes | None:
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
