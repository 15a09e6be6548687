"""Give a bundle its name: whole or not at all, and what had the name keeps it until then."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smart_common.files import new_folder_beside, owning
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
    with owning(output) as mine:
        if not mine:
            raise ExportError(f"another export to this name is running, {output}; wait for it")
        try:
            with new_folder_beside(output) as place:
                yield place
        except OSError as error:
            if error.errno not in _NO_ROOM and not _NUMPY_HAS_NO_ROOM.search(str(error)):
                raise
            raise ExportError(
                f"too little room for the bundle {output} ({error.strerror or error}); make some there and where "
                "temporary files go (TMPDIR), or use another -o"
            ) from error


def publish(place: Path, output: Path, *, force: bool) -> None:
    """Flush the bundle in ``place`` to the disk and give it the name ``output``.

    With ``force`` it may replace another there, which is then in ``place`` or gone. A process that is killed on the
    way leaves the old or the new bundle under the name; only where two names cannot change places in one step, a kill
    between two can leave none, and the old one whole in ``.NAME.old`` until the next export.

    Raises:
        ExportError: if other things than a bundle have come to stand at ``output`` since the export began.
        OSError: if the system refuses; what stood at ``output`` stands there still.
    """
    check_output(output, force=force)
    for path in (*place.rglob("*"), place):
        _flush(path)
    old = output.with_name(f".{output.name}.old")
    replaces = force and output.exists()
    if not (replaces and _exchange(place, output)):
        if replaces:
            _remove_old(old, output)
            output.rename(old)
        try:
            place.rename(output)
        except OSError:
            if replaces:
                old.rename(output)
            raise
    _flush(output.parent)
    _remove_old(old, output)


def _remove_old(old: Path, output: Path) -> None:
    """Remove a bundle that an export put aside; a folder of that name with other things is somebody's."""
    if _is_replaceable(old):
        with new_folder_beside(output) as waste:  # a half removed one is still told from somebody's
            old.rename(waste / old.name)


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
