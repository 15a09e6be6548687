"""Decode many pictures into one array."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from smart_common.errors import few, shortened
from smart_runtime.bundle.manifest import Colour
from smart_runtime.errors import InputError
from smart_runtime.pictures import MAX_PIXELS, check_size, is_grey, opened, read_picture, upright_size
from smart_train.data.images import MAX_SIDE, Pixels
from smart_train.data.source import Advance, Progress, check_fits, too_much
from smart_train.errors import DataError

_CHUNK = 128  # pictures a task: handing over a single small one costs as much as decoding it
# Pillow lets go of Python's lock while it decodes. On two cores that reads pictures of 224x224 in half the time, of
# 64x64 in three quarters; for 32x32 it neither gains nor costs much. More than a few threads only wait for the lock.
_THREADS = 8

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Broken:
    """A picture that cannot be read, and what is wrong with it and the remedy."""

    path: Path
    why: str


@dataclass(frozen=True)
class _Header:
    """(height, width) of a picture, as `read_picture` will turn it, and whether it is grey."""

    size: tuple[int, int]
    is_grey: bool


def read_pictures(
    paths: Sequence[Path], *, progress: Progress, size: tuple[int, int] | None = None, max_broken: int = 0
) -> tuple[Pixels, list[int]]:
    """Return the pictures, upright: uint8 (N, H, W, C), C 1 where every one of them is grey, else 3; and which it read.

    Args:
        paths: one or more files.
        progress: shows how far it is, headers first.
        size: height and width that each is scaled and cut to, as `read_picture` does; None where all have one size.
        max_broken: leave out up to so many that cannot be read, which a warning names.

    Returns:
        The pictures and, for each of them, its place in ``paths``.

    Raises:
        DataError: if more cannot be read, with up to ten of their names, if sizes differ or they are too large.
    """
    broken: dict[int, _Broken] = {}
    with progress("checking pictures", total=len(paths)) as advance:
        found, colour = _size_and_colour(paths, advance, size=size, broken=broken)
    _refuse(broken, max_broken=max_broken, of=len(paths))
    height, width = found
    kept = [i for i in range(len(paths)) if i not in broken]
    channels = 1 if colour == "L" else 3
    what = f"{len(kept)} pictures of {width}x{height}"
    check_fits(len(kept) * height * width * channels, what=what)
    try:
        images = np.empty((len(kept), height, width, channels), dtype=np.uint8)
    except MemoryError as error:
        raise too_much(what) from error

    def decode_one(place: int) -> None:
        path = paths[kept[place]]
        try:
            images[place] = read_picture(path, height=height, width=width, colour=colour)
        except InputError as error:
            broken[kept[place]] = _Broken(path, str(error))

    def decode(start: int) -> int:
        chunk = range(start, min(start + _CHUNK, len(kept)))
        for place in chunk:
            decode_one(place)
        return len(chunk)

    with progress("reading pictures", total=len(kept)) as advance:
        for count in _in_threads(decode, range(0, len(kept), _CHUNK)):
            advance(count=count)
    _refuse(broken, max_broken=max_broken, of=len(paths))
    if broken:
        _log.warning("warning: broken and left out: %s", few([broken[i].path for i in sorted(broken)]))
    whole = [place for place, i in enumerate(kept) if i not in broken]
    for place, old in enumerate(whole):  # in place: a copy of all of them could be too much
        if place != old:
            images[place] = images[old]
    return images[: len(whole)], [kept[place] for place in whole]


def _refuse(broken: Mapping[int, _Broken], *, max_broken: int, of: int) -> None:
    """Raise DataError if there are too many, or all ``of`` them: the first is described, and others are named."""
    if len(broken) <= max_broken and len(broken) < of:
        return
    first, *others = (broken[i] for i in sorted(broken))
    what, _, remedy = first.why.rpartition("; ")
    more = f", nor {len(others)} more: {few([one.path for one in others[:9]])}" if others else ""
    more += ", ..." if len(others) > 9 else ""
    less = f", or leave them out with --max-broken {len(broken)}" if len(broken) < of else ""  # else nothing is left
    raise DataError(f"{what}{more}; {remedy}{less}")


def _in_threads(work: Callable[[int], _Result], starts: Sequence[int]) -> Iterator[_Result]:
    """Yield ``work`` of each start, in their order, so that of several errors always the first is raised."""
    pool = ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0))))
    try:
        yield from pool.map(work, starts)
    finally:  # after an error or Control-C nobody waits for thousands of pictures
        pool.shutdown(cancel_futures=True)


def _size_and_colour(
    paths: Sequence[Path], advance: Advance, *, size: tuple[int, int] | None, broken: dict[int, _Broken]
) -> tuple[tuple[int, int], Colour]:
    """Return (height, width) of all pictures, and L or RGB, from their headers alone; add to ``broken``."""

    def headers(start: int) -> list[_Header | _Broken]:
        return [_header(path) for path in paths[start : start + _CHUNK]]

    given, grey, done = size, True, 0
    for chunk in _in_threads(headers, range(0, len(paths), _CHUNK)):
        for i, header in enumerate(chunk, done):
            if isinstance(header, _Broken):
                broken[i] = header
                continue
            if given is None and size is not None and header.size != size:
                raise DataError(
                    f"pictures differ in size, {size[1]}x{size[0]} and {header.size[1]}x{header.size[0]} "
                    f"({shortened(str(paths[i]))}); scale and cut them to one with --image-size {min(size)}, say"
                )
            size = given or header.size
            grey = grey and header.is_grey
        done += len(chunk)
        advance(count=len(chunk))
    if size is None:
        return (1, 1), "L"  # of no picture: all are broken
    if max(size) > MAX_SIDE:  # before memory is taken for all of them
        raise DataError(
            f"expected pictures of at most {MAX_SIDE} pixels a side, got {size[1]}x{size[0]}; scale them down first"
        )
    return size, "L" if grey else "RGB"


def _header(path: Path) -> _Header | _Broken:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  # an optional library is imported where it is used

    name = shortened(str(path))
    try:
        with opened(path, name=name) as picture:
            check_size(picture, name=name)
            return _Header(upright_size(picture, name=name), is_grey(picture))
    except InputError as error:
        return _Broken(path, str(error))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pass
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        unknown = isinstance(error, UnidentifiedImageError)  # which repeats the name
        told = str(getattr(error, "strerror", None) or error)  # the system's words without the name again
        reason = "of no format that is read" if unknown else shortened(told).replace("; ", ", ")
        return _Broken(path, f"cannot read {name} as a picture ({reason}); remove or replace it")
    return _Broken(path, f"expected a picture of at most {MAX_PIXELS} pixels, got more in {name}; scale it down first")
