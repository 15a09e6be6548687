"""Decode many pictures of one size into one array."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from smart_runtime.bundle.manifest import Colour
from smart_runtime.errors import InputError
from smart_runtime.pictures import FORMATS, MAX_PIXELS, read_picture
from smart_train.data.images import MAX_SIDE, Pixels
from smart_train.data.source import Advance, Progress
from smart_train.errors import DataError

_EXIF_ORIENTATION = 0x0112
_CHUNK = 128  # pictures a task: handing over a single small one costs as much as decoding it
# Pillow lets go of Python's lock while it decodes. On two cores that reads pictures of 224x224 in half the time, of
# 64x64 in three quarters; for 32x32 it neither gains nor costs much. More than a few threads only wait for the lock.
_THREADS = 8

_Result = TypeVar("_Result")


def read_pictures(paths: Sequence[Path], *, progress: Progress) -> Pixels:
    """Return the pictures, upright: uint8 (N, H, W, C), C 1 where every one of them is grey, else 3.

    Raises:
        DataError: if one cannot be read, which names it, if sizes differ or they are too large.
    """
    with progress("checking pictures", total=len(paths)) as advance:
        (height, width), colour = _size_and_colour(paths, advance)
    channels = 1 if colour == "L" else 3
    try:
        images = np.empty((len(paths), height, width, channels), dtype=np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{len(paths)} pictures of {width}x{height} do not fit into memory; scale them down first"
        ) from error

    def decode(start: int) -> int:
        chunk = paths[start : start + _CHUNK]
        for i, path in enumerate(chunk, start):
            images[i] = _read(path, height=height, width=width, colour=colour)
        return len(chunk)

    with progress("reading pictures", total=len(paths)) as advance:
        for count in _in_threads(decode, range(0, len(paths), _CHUNK)):
            advance(count=count)
    return images


def _in_threads(work: Callable[[int], _Result], starts: Sequence[int]) -> Iterator[_Result]:
    """Yield ``work`` of each start, in their order, so that of several errors always the first is raised."""
    pool = ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0))))
    try:
        yield from pool.map(work, starts)
    finally:  # after an error or Control-C nobody waits for thousands of pictures
        pool.shutdown(cancel_futures=True)


def _size_and_colour(paths: Sequence[Path], advance: Advance) -> tuple[tuple[int, int], Colour]:
    """Return the one (height, width) of all pictures, and L or RGB, from their headers alone."""

    def headers(start: int) -> list[tuple[Path, tuple[int, int], bool]]:
        return [(path, *_header(path)) for path in paths[start : start + _CHUNK]]

    size: tuple[int, int] | None = None
    grey = True
    for chunk in _in_threads(headers, range(0, len(paths), _CHUNK)):
        for path, here, is_grey in chunk:
            if size is not None and here != size:
                raise DataError(
                    f"pictures differ in size, {size[1]}x{size[0]} and {here[1]}x{here[0]} ({path}); resize them first"
                )
            size = here
            grey = grey and is_grey
        advance(count=len(chunk))
    assert size is not None
    if max(size) > MAX_SIDE:  # before memory is taken for all of them
        raise DataError(
            f"expected pictures of at most {MAX_SIDE} pixels a side, got {size[1]}x{size[0]}; scale them down first"
        )
    return size, "L" if grey else "RGB"


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """Return (height, width) of a picture, as `read_picture` will turn it, and whether it is grey."""
    from PIL import Image  # noqa: PLC0415  # an optional library is imported where it is used

    try:
        with Image.open(path, formats=FORMATS) as picture:
            # Asked first: to look for EXIF data behind the pixels of a PNG, Pillow decodes them.
            if picture.width * picture.height <= MAX_PIXELS:
                turned = picture.getexif().get(_EXIF_ORIENTATION, 1) >= 5
                size = (picture.width, picture.height) if turned else (picture.height, picture.width)
                return size, picture.mode in {"1", "L", "LA"}
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pass
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        raise DataError(f"cannot read {path} as a picture ({error}); remove or replace it") from error
    raise DataError(f"expected a picture of at most {MAX_PIXELS} pixels, got more in {path}; scale it down first")


def _read(path: Path, *, height: int, width: int, colour: Colour) -> Pixels:
    try:
        return read_picture(path, height=height, width=width, colour=colour)
    except InputError as error:
        raise DataError(str(error)) from error
