"""Keep what was read once: a data set's arrays in memory-mapped files.

``CACHE/data/KIND-KEY/FINGERPRINT/`` holds the four arrays as .npy and ``set.json`` with all else and a checksum; scaled
pictures are in ``KIND-KEY-SIZE``. The key is the source's absolute path. The fingerprint covers the name, size and time
of every source file, so that a changed source is read anew. An entry is written beside its place, flushed and renamed;
it counts only where it still is what was stored. A cache that cannot be used costs time, never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap  # unlike numpy.load it takes .npy only, and no pickles at all

from smart_common.documents import parse_document
from smart_common.files import locked, new_folder_beside, replacing
from smart_train.data.images import ImageSet
from smart_train.data.source import ARRAYS, Arrays, Source
from smart_train.errors import DataError

_VERSION = 2  # one more whenever a reader makes other arrays of the same files
_ABOUT = "set.json"


def through_cache(
    source: Source, *, cache_dir: Path, read: Callable[[], Arrays], build: Callable[[Arrays], ImageSet]
) -> ImageSet:
    """Return ``build`` of the source's arrays, from the cache where they are, else from ``read`` and into the cache.

    ``read`` reads the files of ``source``, ``build`` checks their arrays, which may be read-only or memory-mapped.
    Entries are in the folder ``data`` of ``cache_dir`` (no ``~`` in front), which is created.

    Raises:
        DataError: as ``read`` and ``build`` do on the source; never for the cache.
    """
    key = hashlib.sha256(os.fsencode(source.root.resolve())).hexdigest()[:32]
    plain = f"{source.kind}-{key}"
    before = _fingerprint(source)
    # Pictures that have the wanted size already are the same in both ways of reading them.
    for shelf in dict.fromkeys((plain, f"{plain}-{source.variant}" if source.variant else plain)):
        entry = cache_dir / "data" / shelf / before
        images = _stored(entry, build)
        if images is not None:
            return images
    arrays = read()
    images = build(arrays)
    if _fingerprint(source) == before:  # else somebody changed the files while they were read
        with suppress(OSError):  # a cache that is full, read-only or no folder at all
            _store(entry, arrays, checksum=_checksum(images))
    return images


def _fingerprint(source: Source) -> str:
    """Return a hash over the name, size and time of each file of a source, hexadecimal."""
    digest = hashlib.sha256(repr((_VERSION, source.decoder)).encode())
    for path in source.files:
        try:
            status = path.stat()
            known = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # a dangling link, say: the reader will name it
            known = "unreadable"
        digest.update(b"%b\0%b\0" % (os.fsencode(path.relative_to(source.root)), known.encode()))
    return digest.hexdigest()[:32]


def _checksum(images: ImageSet) -> str:
    """Return a hash over every byte that an entry holds, so that a flipped bit on the disk is found, hexadecimal."""
    about = [images.digest, images.class_names, images.notes]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _stored(entry: Path, build: Callable[[Arrays], ImageSet]) -> ImageSet | None:
    """Return the entry's image set; None where there is no entry, or one that is not as it was stored."""
    try:
        about = parse_document((entry / _ABOUT).read_bytes(), damaged=DataError).raw
        names = about["class_names"]
        arrays = Arrays(
            **{name: np.asarray(open_memmap(entry / f"{name}.npy", mode="c")) for name in ARRAYS},
            class_names=None if names is None else tuple(names),
            left_out=about["left_out"],
            notes=tuple(about["notes"]),
        )
        images = build(arrays)
        return images if _checksum(images) == about["checksum"] else None
    except Exception:  # half deleted, cut short or written over with anything: all of them mean "read it anew"
        return None


def _store(entry: Path, arrays: Arrays, *, checksum: str) -> None:
    """Write an entry beside its place and rename it there; whatever else lies on its shelf is stale and goes."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with locked(entry.parent / ".lock") as alone:
        if not alone:
            return  # another process is storing the very same, or something newer
        for stale in entry.parent.iterdir():  # entries of changed sources, damaged ones, leavings of killed processes
            if stale.is_dir():
                shutil.rmtree(stale)
        with new_folder_beside(entry) as beside:
            for name in ARRAYS:
                with replacing(beside / f"{name}.npy") as file:
                    np.save(file, getattr(arrays, name), allow_pickle=False)
            with replacing(beside / _ABOUT) as file:
                about = {name: getattr(arrays, name) for name in ("class_names", "left_out", "notes")}
                file.write(json.dumps(about | {"checksum": checksum}).encode())
            beside.rename(entry)
