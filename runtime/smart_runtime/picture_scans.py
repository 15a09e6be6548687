"""How much work the scans of a JPEG are, also of those that a TIFF file is made of: each passes over all pixels."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from PIL import Image

_SCAN = re.compile(rb"\xff\xda\0(?:\x06\0|\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""How a scan begins, its length and number of components, which fit: a film behind a photograph has no such bytes."""
_LONGEST = 5

_BLOCK = 2**20
_A_BYTE = 4  # counts as so many pixels where parts may overlap; real ones have fewer bytes than pixels
_ENDLESS = 2**63

_WIDTH, _HEIGHT, _COMPRESSION = 256, 257, 259  # tags of TIFF
_ROWS, _STRIPS, _STRIP_SIZES = 278, 273, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325
_JPEG = (6, 7)  # the old way and the new one


def scanned(picture: Image.Image, *, enough: int) -> int:
    """Return how many pixels the scans of an opened picture pass over, counted until they are more than ``enough``."""
    file = cast("BinaryIO", picture.fp)  # type: ignore[attr-defined]  # of an opened one
    place = file.tell()
    try:
        if picture.format in {"JPEG", "MPO"}:
            return _scans(file, start=0, size=_ENDLESS) * picture.width * picture.height
        if picture.format == "TIFF":
            return _scanned_parts(picture, file, enough=enough)
    finally:
        file.seek(place)
    return 0


def _scanned_parts(picture: Image.Image, file: BinaryIO, *, enough: int) -> int:
    """Return it of a TIFF file, each strip or tile for itself, as several may be the same bytes."""
    tags = picture.tag_v2  # type: ignore[attr-defined]  # of a TIFF file
    if tags.get(_COMPRESSION) not in _JPEG:
        return 0
    if _TILES in tags:
        pixels, places, sizes = tags[_TILE_WIDTH] * tags[_TILE_HEIGHT], tags[_TILES], tags.get(_TILE_SIZES, ())
    else:
        rows = min(tags.get(_ROWS, tags[_HEIGHT]), tags[_HEIGHT])
        pixels, places, sizes = tags[_WIDTH] * rows, tags[_STRIPS], tags.get(_STRIP_SIZES, ())
    end = file.seek(0, os.SEEK_END)
    found: dict[tuple[int, int], int] = {}
    total = 0
    for i, start in enumerate(places):
        size = sizes[i] if i < len(sizes) and sizes[i] else _ENDLESS  # libtiff guesses what is not said
        if (start, size) not in found:
            found[start, size] = _scans(file, start=start, size=size)
            total += _A_BYTE * max(0, min(size, end - start))
        total += found[start, size] * pixels
        if total > enough:
            break
    return int(total)


def _scans(file: BinaryIO, *, start: int, size: int) -> int:
    file.seek(start)
    scans, rest = 0, b""
    while block := file.read(min(_BLOCK, size)):
        scans += len(_SCAN.findall(rest + block))
        rest = block[-(_LONGEST - 1) :]  # a byte less than what is looked for
        size -= len(block)
    return scans
