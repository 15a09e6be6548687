"""What a shared library is linked to, read from its file: nothing is loaded."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

# System V ABI, chapters 4 and 5, for 64 bits and the little end first, as on all that runs CUDA.
_IDENT = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<32xQ14xHH6x")  # where the program headers are, the size of one, their number
_PROGRAM_HEADER = struct.Struct("<I4xQQ8xQ16x")  # type, offset, address, size in the file
_ENTRY = struct.Struct("<qQ")  # of the dynamic section: tag and value
_LOAD, _DYNAMIC = 1, 2  # types of program headers
_END, _NEEDED, _NAMES = 0, 1, 5  # tags
_MOST_BYTES = 2**20  # of a table; real ones have a few hundred
_LONGEST_NAME = 256


def needed_libraries(path: Path) -> tuple[str, ...]:
    """Return the names of the libraries that ``path`` needs itself, such as ``libcublas.so.13``.

    Empty for what cannot be read or is no shared library of a 64-bit machine.
    """
    try:
        with path.open("rb") as file:
            return _needed(file)
    except (OSError, OverflowError, LookupError, ValueError, StopIteration, struct.error):
        return ()


def _needed(file: BinaryIO) -> tuple[str, ...]:
    header = file.read(_HEADER.size)
    if not header.startswith(_IDENT):
        return ()
    start, size, count = _HEADER.unpack(header)
    headers = list(_PROGRAM_HEADER.iter_unpack(_read(file, start, count * size)))
    offset, length = next((offset, length) for kind, offset, _, length in headers if kind == _DYNAMIC)
    entries = []
    for tag, value in _ENTRY.iter_unpack(_read(file, offset, length)):
        if tag == _END:
            break
        entries.append((tag, value))
    address = dict(entries)[_NAMES]
    names = next(
        offset + address - at for kind, offset, at, length in headers if kind == _LOAD and at <= address < at + length
    )
    texts = (_read(file, names + value, _LONGEST_NAME) for tag, value in entries if tag == _NEEDED)
    return tuple(text.partition(b"\0")[0].decode("ascii") for text in texts)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(min(size, _MOST_BYTES))
