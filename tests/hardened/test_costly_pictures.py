"""Pictures and arrays that take far more time or memory to unpack than their size says are refused before."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smart_runtime.errors import InputError
from smart_runtime.pictures import fitted, read_picture
from smart_train.data.load import load_data
from smart_train.data.pictures import read_pictures
from smart_train.data.source import no_progress
from smart_train.errors import DataError

_SECONDS = 2


def png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def webp() -> bytes:
    return encoded(Image.new("L", (8000, 5000)), "WEBP", lossless=True, method=0, quality=0)


def scans() -> bytes:
    data = encoded(Image.new("L", (1024, 1024)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 1100 + data[-2:]


def digits() -> bytes:
    return b"P3 1300 1000 255\n" + b"0 " * 2_200_000


COSTLY = {
    "webp": (webp, "at most 33554432 pixels"),
    "long": (lambda: png(2**17, 1), "at most 65536 pixels a side"),
    "high": (lambda: png(1, 2**25), "at most 65536 pixels a side"),
    "scans": (scans, "too many scans"),
    "digits": (digits, "in digits"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_picture_is_refused_before_it_is_decoded(tmp_path: Path, name: str) -> None:
    make, words = COSTLY[name]
    path = tmp_path / f"{name}.png"
    path.write_bytes(make())
    assert path.stat().st_size < 5_000_000
    started = time.process_time()
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(InputError, match=words):
            read_picture(source, height=8, width=8, colour="RGB")
    with pytest.raises(DataError, match=words):
        read_pictures([path], progress=no_progress)
    assert time.process_time() - started < _SECONDS


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})],
    ids=["progressive jpeg", "webp", "png", "tiff"],
)
def test_what_a_camera_writes_is_read(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.fromarray(colours), kind, **options))
    found = read_picture(path, height=64, width=48, colour="RGB")
    with Image.open(path) as opened:
        assert np.array_equal(found, np.asarray(opened.convert("RGB")))
        assert np.array_equal(found, fitted(opened, height=64, width=48, colour="RGB", name="photo"))
    plain = tmp_path / "plain.ppm"
    plain.write_bytes(b"P3 2 1 255\n1 2 3 4 5 6\n")
    assert read_picture(plain, height=1, width=2, colour="RGB").ravel().tolist() == [1, 2, 3, 4, 5, 6]


def little_memory(name: str, *, real: object = os.sysconf) -> int:
    return {"SC_PHYS_PAGES": 100}[name] if name == "SC_PHYS_PAGES" else real(name)  # type: ignore[operator]


def test_a_folder_of_more_pixels_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.new("RGB", (400, 400)).save(path)
    monkeypatch.setattr(os, "sysconf", little_memory)
    assert read_pictures([paths[0]], progress=no_progress, size=(8, 8))[0].shape == (1, 8, 8, 3)
    with pytest.raises(DataError, match=r"^3 pictures of 400x400 do not fit into memory; "):
        read_pictures(paths, progress=no_progress)


def test_an_npz_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    images, labels = np.zeros((20, 64, 64, 3), np.uint8), np.arange(20) % 2
    np.savez_compressed(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    assert path.stat().st_size < 20_000
    assert load_data(path).shape == (3, 64, 64)
    monkeypatch.setattr(os, "sysconf", little_memory)
    with pytest.raises(DataError, match=r"bomb.npz, of \d+ bytes, do not fit into memory; "):
        load_data(path)
