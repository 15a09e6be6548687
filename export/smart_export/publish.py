"""Give a bundle its name: whole or not at all, and what had the name keeps it until then."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smart_export.errors import ExportError
from smart_runtime.bundle.bundle import CHECKSUMS, MANIFEST, SIGNATURE, parse_checksums
from smart_runtime.bundle.files import list_files
from smart_runtime.errors import BundleError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NUMPY_HAS_NO_ROOM = re.compile(r"\d+ requested and \d+ written")  # what tofile says, without a number

_AT_FDCWD = -100  # fcntl.h: names are relative to where we are, as everywhere else
_RENAME_EXCHANGE = 2  # linux/fs.h


def check_output(output: Path, *, force: bool) -> None:
    """Raise ExportError unless a bundle may be written to ``output``."""
    if not output.parent.is_dir():
        raise ExportError(f"no folder {output.parent} for {output.name}; create it first")
    if not os.path.lexists(output):
        return
    if not force:
        raise ExportError(f"{output} exists already; use --force to replace a bundle, or another -o")
    if not _is_replaceable(output):
        raise ExportError(f"{output} holds other things than a bundle, and stays as it is; use another -o")


def _is_replaceable(output: Path) -> bool:
    """Whether ``output`` is an empty folder, or one with nothing but the files of a bundle, whole or damaged."""
    if output.is_symlink() or not output.is_dir():
        return False
    try:
        present = set(list_files(output)) - {CHECKSUMS, SIGNATURE}
        if not any(output.iterdir()):
            return True
        named = parse_checksums((output / CHECKSUMS).read_bytes())
    except (BundleError, OSError):
        return False
    return MANIFEST in named and present <= set(named)


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside ``output``, removed again if it is still there at the end.

    Raises:
        ExportError: if there is no room for what is written into it, or another export writes a bundle of this name.
    """
    place = output.with_name(f".{output.name}.tmp")  # one name: what a killed export left goes with the next one
    with _own(place):
        try:
            yield place
        except OSError as error:
            if error.errno not in _NO_ROOM and not _NUMPY_HAS_NO_ROOM.search(str(error)):
                raise
            raise ExportError(
                f"too little room for the bundle {output} ({error.strerror or error}); make some there and where "
                "temporary files go (TMPDIR), or use another -o"
            ) from error
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _own(place: Path) -> Iterator[None]:
    """Make the folder ``place`` anew and lock it: two exports into one folder would mix their files.

    The lock goes with the process, so that what a killed export left is nobody's.
    """
    busy = ExportError(f"another export to this name is running in {place}; wait for it")
    with suppress(FileNotFoundError):
        left = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)
        except BlockingIOError as error:
            raise busy from error
        finally:
            os.close(left)
    try:
        place.mkdir()
    except FileExistsError as error:
        raise busy from error
    own = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(own)


def publish(place: Path, output: Path, *, force: bool) -> None:
    """Flush the bundle in ``place`` to the disk and give it the name ``output``.

    With ``force`` it may replace another there, which is then in ``place`` or gone. A process that is killed on the
    way leaves the old or the new bundle under the name; only where two names cannot change places in one step, a kill
    between two can leave none, and the old one whole in ``.NAME.old`` until the next export.

    Raises:
        OSError: if the system refuses; what stood at ``output`` stands there still.
    """
    for path in (*place.rglob("*"), place):
        _flush(path)
    old = output.with_name(f".{output.name}.old")
    replaces = force and output.exists()
    if not (replaces and _exchange(place, output)):
        if replaces:
            shutil.rmtree(old, ignore_errors=True)
            output.rename(old)
        try:
            place.rename(output)
        except OSError:
            if replaces:
                old.rename(output)
            raise
    _flush(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step, of which no reader and no crash sees a half; False if that is refused.

    It takes Linux, glibc 2.28 and a file system that can. Why one refuses does not matter (old containers even say
    EPERM): the plain renames that follow work, or say what is wrong.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return bool(renameat2(*names, ctypes.c_uint(_RENAME_EXCHANGE)) == 0)


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
