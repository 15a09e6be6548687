"""Numbers and pictures as the page writes them."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

from smart_common.units import si
from smart_train.data.images import Pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR = 0, 2  # colour types, section 11.2.1


def percent(value: float) -> str:
    """Return a fraction as ``97.2%``."""
    return f"{100 * value:.1f}%"


def span(interval: Sequence[float]) -> str:
    """Return the ends of an interval of fractions as ``95.0 to 98.5``, in percent."""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def points(difference: float) -> str:
    """Return a difference of fractions without its sign: ``54.2 points``."""
    return f"{abs(100 * difference):.1f} points"


def latency(ms: float) -> str:
    """Return milliseconds as people say them: ``33.1 µs``, ``4.12 ms``, ``1.2 s``."""
    for factor, unit in ((1000, "µs"), (1, "ms")):
        if factor * ms < 999.5:  # more would be shown as 1e+03
            return f"{factor * ms:.3g} {unit}"
    return si(ms / 1000, "s")


def radius(eps: float) -> str:
    """Return eps as people write it: ``8/255`` where it is a whole number of levels, else ``0.3``."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 1e-6 and levels != 255 else f"{eps:.4g}"


def png(pixels: Pixels) -> bytes:
    """Return uint8 (H, W, C) as a PNG: grey of one channel, colours of three, else the mean of all as grey.

    In its simplest form (W3C PNG specification, 3rd edition), which needs no library.
    """
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
