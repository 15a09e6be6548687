"""Bound what the tags of TIFF files and EXIF data claim.

Each of them may claim the whole file, and Pillow before version 13 copies it as often.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from smart_runtime.errors import InputError

# Bytes that the tags may claim beyond those that the file has: small ones share values.
_SLACK = 2**20
# Of values that are no bytes or text: a number becomes an object. Tiles of 2^26 pixels take half of it.
_MAX_NUMBERS = 2**23

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # of a type
_PLAIN = {1, 2, 7}
_POINTERS = {34665, 34853, 40965}  # to the further directories that Pillow reads: EXIF, GPS, interoperability
_INTEGERS = {3: "H", 4: "L", 8: "h", 9: "l", 13: "L", 16: "Q"}

_EXIF = b"Exif\0\0"


def check_tags(file: BinaryIO, *, name: str) -> None:
    """Raise InputError if tags in a file, which messages call ``name``, claim more than there is; back to its start.

    Of a TIFF file and of a JPEG file, whose tags Pillow reads as it opens them; others keep theirs for later.
    """
    file.seek(0)
    head = file.read(3)
    if head == b"\xff\xd8\xff":
        for block in _blocks(file):
            check_exif(block, name=name)
    elif head[:2] in {b"II", b"MM"}:
        _check(file, name=name)
    file.seek(0)


def check_exif(block: bytes, *, name: str) -> None:
    """Raise InputError if the tags of EXIF data claim more than there is."""
    while block.startswith(_EXIF):
        block = block[len(_EXIF) :]
    _check(io.BytesIO(block), name=name)


def _check(file: BinaryIO, *, name: str) -> None:
    file.seek(0, os.SEEK_END)
    size = file.tell()
    claimed = numbers = 0
    for one, is_plain in _claims(file, size=size):
        claimed += one
        numbers += 0 if is_plain else one
        if claimed > size + _SLACK or numbers > _MAX_NUMBERS:
            raise InputError(f"the tags of {name} claim more than a picture needs; save it again without metadata")


def _claims(file: BinaryIO, *, size: int) -> Iterator[tuple[int, bool]]:
    """Yield of each directory and each tag how many bytes it has a reader copy, and whether they stay bytes."""
    file.seek(0)
    head = file.read(16)
    is_big = head[2:3] == b"\x2b"  # as Pillow tells it: BigTIFF of the other byte order is none
    if len(head) < (16 if is_big else 8):
        return
    order = "<" if head[:2] == b"II" else ">"
    whole, entry, inline = ("Q", "HHQ8s", 8) if is_big else ("L", "HHL4s", 4)
    length = struct.calcsize(order + entry)
    places, seen = [struct.unpack_from(order + whole, head, 8 if is_big else 4)[0]], set()
    while places:
        place = places.pop()
        if place in seen or not 0 <= place < size:
            continue
        seen.add(place)
        file.seek(place)
        data = file.read(8 if is_big else 2)
        if len(data) < (8 if is_big else 2):
            continue
        (count,) = struct.unpack(order + ("Q" if is_big else "H"), data)
        entries = file.read(min(count * length, _MAX_NUMBERS + 1))  # more are refused
        yield len(entries), False
        for tag, kind, many, value in struct.iter_unpack(order + entry, entries[: len(entries) // length * length]):
            claimed = many * _SIZES.get(kind, 0)
            if claimed > inline:
                (offset,) = struct.unpack(order + whole, value)
                yield min(claimed, max(0, size - offset)), kind in _PLAIN
            if tag in _POINTERS and many == 1 and kind in _INTEGERS:
                where = value
                if claimed > inline:
                    file.seek(min(offset, size))
                    where = file.read(claimed).ljust(8, b"\0")
                places.append(struct.unpack_from(order + _INTEGERS[kind], where)[0])


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield what a JPEG file has in the form of TIFF: its EXIF data, from all segments, and the index of an MPO.

    Segments are found as Pillow finds them, junk between them included.
    """
    file.seek(3)
    exif, byte = b"", b"\xff"
    while byte:
        if byte != b"\xff":
            byte = file.read(1)
            continue
        kind = file.read(1)
        if kind == b"\xff":
            continue
        if kind == b"\xda" or b"\0" < kind < b"\xc0":  # the scan, or no marker
            break
        if kind and not (kind in b"\0\xc8" or b"\xd0" <= kind <= b"\xd9" or b"\xf0" <= kind <= b"\xfd"):
            data = file.read(max(0, int.from_bytes(file.read(2), "big") - 2))
            if kind == b"\xe1" and data.startswith(_EXIF):
                exif += data[len(_EXIF) :] if exif else data
            elif kind == b"\xe2" and data.startswith(b"MPF\0"):
                yield data[4:]
        byte = file.read(1)
    yield exif
