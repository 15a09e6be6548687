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
from click.testing import CliRunner
from PIL import Image

from runtime.bundles import write_bundle
from smart_runtime.cli import main as smart_run
from smart_runtime.errors import InputError
from smart_runtime.pictures import fitted, opened, read_picture, upright_size
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


def baseline(*, height: int = 4096) -> bytes:
    """Return a JPEG, not progressive, with hundreds of scans of one component."""
    data = encoded(Image.new("RGB", (4096, height)), "JPEG", subsampling=0)

    def scan(component: int, tables: int) -> bytes:
        return b"\xff\xda\0\x08\x01" + bytes((component, tables, 0, 63, 0, 0))

    return data[: data.index(b"\xff\xda")] + scan(1, 0) + scan(2, 0x11) * 100 + scan(3, 0x11) + b"\xff\xd9"


def in_strips(data: bytes, *, width: int, height: int, strips: int = 1) -> bytes:
    """Return a TIFF each of whose strips is the same JPEG, of ``data``."""
    start = 8 + 2 + 12 * 10 + 4
    where = start + len(data)
    fields = [(256, width), (257, height), (259, 7), (262, 6), (277, 3), (278, height // strips), (530, 0x10001)]
    rows = [(tag, 3 if tag == 530 else 4, 2 if tag == 530 else 1, value) for tag, value in fields]
    rows += [(258, 3, 1, 8), (273, 4, strips, start if strips == 1 else where)]
    rows += [(279, 4, strips, len(data) if strips == 1 else where + 4 * strips)]
    table = struct.pack("<H", len(rows)) + b"".join(struct.pack("<HHLL", *row) for row in sorted(rows)) + bytes(4)
    parts = struct.pack(f"<{strips}L", *[start] * strips) + struct.pack(f"<{strips}L", *[len(data)] * strips)
    return b"II*\0" + struct.pack("<L", 8) + table + data + parts


def tagged(count: int, size: int, *, order: str = "<", big: bool = False, pointer: int = 0, kind: int = 1) -> bytes:
    """Return a TIFF of ``size`` bytes, all of which each of its tags, or of those of a ``pointer``, claims."""
    entry, mark = (order + "HHQQ", 43) if big else (order + "HHLL", 42)
    own = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 16), (278, 8), (279, 64)]
    fields = [(tag, 4, 1, value) for tag, value in own]
    claims = [(1000 + i, kind, size, 0) for i in range(count)]

    def directory(fields: list[tuple[int, int, int, int]]) -> bytes:
        rows = b"".join(struct.pack(entry, *field) for field in sorted(fields))
        return struct.pack(order + ("Q" if big else "H"), len(fields)) + rows + bytes(8)

    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", mark)
    head += struct.pack(order + "HHQ", 8, 0, 80) if big else struct.pack(order + "L", 80)
    if pointer:
        inner = 80 + len(directory([*fields, (pointer, 4, 1, 0)]))
        data = directory([*fields, (pointer, 4, 1, inner)]) + directory(claims)
    else:
        data = directory([*fields, *claims])
    return (head.ljust(80, b"\0") + data).ljust(size, b"\0")


def png_with(kind: bytes, data: bytes) -> bytes:
    whole = encoded(Image.new("L", (8, 8)), "PNG")
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return whole[:-12] + chunk + whole[-12:]  # behind the pixels


def raw_profile() -> bytes:
    exif = tagged(1000, 300_000).hex().encode()
    return png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n300000\n" + exif))


def segments() -> bytes:
    """Return a JPEG whose EXIF data stands in many segments, with junk and padding between them."""
    whole, exif = encoded(Image.new("L", (8, 8)), "JPEG"), tagged(2000, 600_000)
    parts = [b"Exif\0\0" + exif[i : i + 60_000] for i in range(0, len(exif), 60_000)]
    return whole[:2] + b"junk\xff".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in parts) + whole[2:]


def shared() -> bytes:
    return in_strips(baseline(height=256), width=4096, height=4096, strips=16)


def overlapping() -> bytes:
    """Return a TIFF whose strips have no scans, and each is the rest of the file."""
    data = in_strips(bytes(500_000), width=16, height=60_000, strips=60_000)
    return data[:-480_000] + struct.pack("<60000L", *range(200, 60_200)) + struct.pack("<60000L", *[900_000] * 60_000)


COSTLY = {
    "webp": (webp, "at most 33554432 pixels"),
    "long": (lambda: png(2**17, 1), "at most 65536 pixels a side"),
    "high": (lambda: png(1, 2**25), "at most 65536 pixels a side"),
    "scans": (scans, "too many scans"),
    "digits": (digits, "in digits"),
    "baseline scans": (baseline, "too many scans"),
    "scans in a TIFF": (lambda: in_strips(baseline(), width=4096, height=4096), "too many scans"),
    "strips that overlap": (overlapping, "too many scans"),
    "scans that strips share": (shared, "too many scans"),
    "tags": (lambda: tagged(2500, 1_000_000), "the tags of "),
    "tags, big-endian": (lambda: tagged(2500, 1_000_000, order=">"), "the tags of "),
    "tags, BigTIFF": (lambda: tagged(2500, 1_000_000, big=True), "the tags of "),
    "tags, EXIF of a TIFF": (lambda: tagged(2500, 1_000_000, pointer=34665), "the tags of "),
    "tags, numbers": (lambda: tagged(10, 1_000_000, kind=5), "the tags of "),
    "tags, PNG": (lambda: png_with(b"eXIf", tagged(2500, 1_000_000)), "the tags of "),
    "tags, PNG's text": (raw_profile, "the tags of "),
    "tags, JPEG": (segments, "the tags of "),
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


def test_a_film_behind_a_photograph_has_no_scans(tmp_path: Path) -> None:
    path = tmp_path / "motion.jpg"
    film = np.random.default_rng(0).bytes(2**20) + b"\xff\xda" * 2000
    path.write_bytes(encoded(Image.new("RGB", (1024, 1024)), "JPEG") + film)
    assert read_picture(path, height=8, width=8, colour="RGB").shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photograph_with_tags_lies_as_they_say(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 5000
    exif.get_ifd(34665)[0x9286] = b"y" * 5000
    options = {"compression": "jpeg"} if kind == "TIFF" else {}
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.new("RGB", (20, 10)), kind, exif=exif, **options))
    with opened(path, name="photo") as picture:
        assert upright_size(picture, name="photo") == (20, 10)
    assert read_pictures([path], progress=no_progress)[0].shape == (1, 20, 10, 3)


def test_a_command_says_nothing_of_damaged_tags(tmp_path: Path) -> None:
    bundle, path = write_bundle(tmp_path / "bundle"), tmp_path / "small.tif"
    path.write_bytes(tagged(100, 3000))
    with Image.open(io.BytesIO(encoded(Image.new("L", (8, 8)), "TIFF"))):  # its modules are there
        done = CliRunner().invoke(smart_run, ["infer", str(bundle), str(path)])
    assert done.exit_code == 0, done.output
    assert "arn" not in done.stderr


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
