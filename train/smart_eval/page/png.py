"""Pictures as data URIs: PNG in its simplest form (W3C PNG specification, 3rd edition), which needs no library."""

from __future__ import annotations

import base64
import struct
import zlib

from smart_train.data.images import Pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR = 0, 2  # colour types, section 11.2.1


def png(pixels: Pixels) -> bytes:
    """Return uint8 (H, W, C) as a PNG: grey of one channel, colours of three, else the mean of all as grey."""
    channels = pixels.shape[2]
    if channels not in {1, 3}:
        pixels = pixels.mean(axis=2, keepdims=True).round().astype("uint8")
    height, width, channels = pixels.shape
    header = struct.pack(">2I5B", width, height, 8, _COLOUR if channels == 3 else _GREY, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # each line is led by its filter, 0 for none
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_uri(pixels: Pixels) -> str:
    """Return uint8 (H, W, C) for an image's ``src``."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode('ascii')}"
