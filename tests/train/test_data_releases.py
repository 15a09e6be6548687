from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import io as matlab

from smart_train.data.load import load_data
from smart_train.errors import DataError
from train.data_files import ARCHIVED, RELEASES, Bars, Release, as_npz, differences, pack, python2_pickle, repack

PAGES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "svhn": "http://ufldl.stanford.edu/housenumbers/",
    "stl10": "https://cs.stanford.edu/~acoates/stl10/",
}
NAMES = {
    "cifar10": ["cifar-10-batches-py", "cifar-10-python.tar.gz"],
    "cifar100": ["cifar-100-python", "cifar-100-python.tar.gz"],
    "svhn": ["train_32x32.mat", "test_32x32.mat"],
    "stl10": ["stl10_binary", "stl10_binary.tar.gz"],
}
BY_KIND = pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)


def refused(kind: str, data_dir: Path, words: str) -> str:
    with pytest.raises(DataError, match=words) as caught:
        load_data(kind, data_dir=data_dir)
    message = str(caught.value)
    assert "\n" not in message
    assert PAGES[kind] in message, "the message must say where the data is"
    return message


@BY_KIND
def test_a_published_set_gives_the_images_that_were_put_into_it(tmp_path: Path, release: Release) -> None:
    content = release.write(tmp_path)
    found = load_data(release.kind, data_dir=tmp_path)
    assert found.kind == release.kind
    assert differences(found, as_npz(tmp_path, content)) == []


@pytest.mark.parametrize("release", ARCHIVED, ids=lambda release: release.kind)
def test_archive_and_folder_are_read_wherever_they_lie(tmp_path: Path, release: Release) -> None:
    release.write(tmp_path)
    whole = load_data(release.kind, data_dir=tmp_path)
    assert differences(whole, load_data(release.kind, data_dir=tmp_path / release.folder)) == []
    archive = pack(tmp_path, release.folder, release.archive)
    assert differences(whole, load_data(release.kind, data_dir=tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == [archive.name], "an archive must not be unpacked to the disk"


def test_an_archive_shows_how_far_it_is_read_and_a_folder_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smart_train.data.release._BLOCK", 2**12)
    for release in ARCHIVED:
        release.write(tmp_path)
        bars = Bars()
        load_data(release.kind, data_dir=tmp_path, progress=bars)
        assert bars.seen == []
        archive = pack(tmp_path, release.folder, release.archive)
        blocks = -(-archive.stat().st_size // 2**12)
        assert blocks > 2
        load_data(release.kind, data_dir=tmp_path, progress=bars)
        assert bars.seen == [(f"reading {release.archive} (MiB)", blocks, blocks)]


def test_an_interrupted_unpacking_beside_the_archive_is_no_obstacle(tmp_path: Path) -> None:
    release = RELEASES["cifar10"]
    release.write(tmp_path)
    whole = load_data("cifar10", data_dir=tmp_path)
    pack(tmp_path, release.folder, release.archive)
    (tmp_path / release.folder).mkdir()
    (tmp_path / release.folder / "data_batch_1").write_bytes(b"half")
    assert differences(whole, load_data("cifar10", data_dir=tmp_path)) == []


@BY_KIND
def test_a_missing_set_says_what_was_looked_for_and_where_to_get_it(tmp_path: Path, release: Release) -> None:
    for data_dir in (tmp_path, tmp_path / "nowhere"):
        message = refused(release.kind, data_dir, re.escape(str(data_dir)))
        assert all(name in message for name in NAMES[release.kind])


def test_folders_called_train_and_test_are_not_taken_for_cifar100(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    refused("cifar100", tmp_path, "no cifar-100-python or cifar-100-python.tar.gz")


Damage = Callable[[Path], object]


def cut(name: str, keep: float = 0.5) -> Damage:
    def act(data_dir: Path) -> None:
        path = data_dir / name
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * keep)])

    return act


def write(name: str, raw: bytes) -> Damage:
    return lambda data_dir: (data_dir / name).write_bytes(raw)


def delete(name: str) -> Damage:
    return lambda data_dir: (data_dir / name).unlink()


def folder(name: str) -> Damage:
    return lambda data_dir: become_a_folder(data_dir / name)


def huge(name: str) -> Damage:
    """A sparse file of a terabyte."""
    return lambda data_dir: os.truncate(data_dir / name, 2**40)


def batch(**changes: Any) -> Damage:
    """Change entries of CIFAR-10's second batch; None removes one."""

    def act(data_dir: Path) -> None:
        path = data_dir / "cifar-10-batches-py" / "data_batch_2"
        content = {"labels": [0, 1, 2, 3], "data": np.zeros((4, 3072), np.uint8)} | changes
        path.write_bytes(python2_pickle({key.encode(): value for key, value in content.items() if value is not None}))

    return act


def mat(**changes: Any) -> Damage:
    def act(data_dir: Path) -> None:
        content = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.arange(1, 5, dtype=np.uint8)[:, None]} | changes
        matlab.savemat(data_dir / "test_32x32.mat", {key: value for key, value in content.items() if value is not None})

    return act


def hdf5(data_dir: Path) -> None:
    """The start of a .mat file of version 7.3."""
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (data_dir / "test_32x32.mat").write_bytes(header + bytes(384) + b"\x89HDF\r\n\x1a\n" + bytes(200))


def claim(images: int) -> Damage:
    """Have the header of X say another number of images."""

    def act(data_dir: Path) -> None:
        mat()(data_dir)
        path = data_dir / "test_32x32.mat"
        raw = path.read_bytes()
        old, new = (struct.pack("=4i", 32, 32, 3, count) for count in (4, images))
        assert raw.count(old) == 1
        path.write_bytes(raw.replace(old, new))

    return act


def stl_labels(*labels: int) -> Damage:
    return write("stl10_binary/test_y.bin", bytes(labels))


C10, C100, STL = "cifar-10-batches-py/", "cifar-100-python/", "stl10_binary/"
DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "cifar10: cut short": ("cifar10", cut(C10 + "data_batch_3"), "data_batch_3 .*: a damaged pickle"),
    "cifar10: empty": ("cifar10", write(C10 + "data_batch_3", b""), "data_batch_3 .*: a damaged pickle"),
    "cifar10: text": ("cifar10", write(C10 + "test_batch", b"hello"), "test_batch .*: a"),
    "cifar10: a file is missing": ("cifar10", delete(C10 + "data_batch_4"), ": no data_batch_4"),
    "cifar10: a folder for a file": ("cifar10", folder(C10 + "data_batch_4"), "data_batch_4 .*no regular file"),
    "cifar10: a terabyte": ("cifar10", huge(C10 + "data_batch_4"), "data_batch_4 .*more than 67108864 bytes"),
    "cifar10: no dictionary": ("cifar10", write(C10 + "test_batch", python2_pickle([1])), "without a dictionary"),
    "cifar10: float pixels": ("cifar10", batch(data=np.zeros((4, 3072))), "an array of type 'f8' instead of uint8"),
    "cifar10: no pixels": ("cifar10", batch(data=None), "no array data"),
    "cifar10: a list of pixels": ("cifar10", batch(data=[0] * 12), "no array data"),
    "cifar10: other rows": ("cifar10", batch(data=np.zeros((4, 3071), np.uint8)), "no array data"),
    "cifar10: no labels": ("cifar10", batch(labels=None), "no list of whole numbers labels"),
    "cifar10: labels in words": ("cifar10", batch(labels=[b"cat"] * 4), "no list of whole numbers labels"),
    "cifar10: too few labels": ("cifar10", batch(labels=[0, 1, 2]), r"labels of shape \(3,\) for 4 images"),
    "cifar10: an eleventh class": ("cifar10", batch(labels=[0, 1, 2, 10]), "labels from 0 to 10 instead of 0 to 9"),
    "cifar10: a negative label": ("cifar10", batch(labels=[0, 1, 2, -1]), "labels from -1 to 2 instead of 0 to 9"),
    "cifar10: no class names": (
        "cifar10",
        write(C10 + "batches.meta", python2_pickle({b"num_vis": 3072})),
        "batches.meta .*no list of strings label_names",
    ),
    "cifar10: numbers for names": (
        "cifar10",
        write(C10 + "batches.meta", python2_pickle({b"label_names": list(range(10))})),
        "no list of strings label_names",
    ),
    "cifar100: cut short": ("cifar100", cut(C100 + "train"), "train .*: a damaged pickle"),
    "cifar100: a label beyond 64 bits": (
        "cifar100",
        write(C100 + "test", pickle.dumps({"fine_labels": [2**70], "data": np.zeros((1, 3072), np.uint8)}, 2)),
        "a damaged or foreign file",
    ),
    "cifar100: only coarse labels": (
        "cifar100",
        write(C100 + "test", pickle.dumps({"coarse_labels": [0], "data": np.zeros((1, 3072), np.uint8)}, 2)),
        "no list of whole numbers fine_labels",
    ),
    "cifar100: missing": ("cifar100", delete(C100 + "meta"), ": no meta"),
    "svhn: missing": ("svhn", delete("train_32x32.mat"), ": no train_32x32.mat"),
    "svhn: a folder for a file": ("svhn", folder("train_32x32.mat"), "train_32x32.mat .*no regular file"),
    "svhn: cut short": ("svhn", cut("test_32x32.mat"), "test_32x32.mat .*: no y"),
    "svhn: cut short, compressed": ("svhn", cut("train_32x32.mat"), "train_32x32.mat .*: no y"),
    "svhn: the labels cut short": ("svhn", cut("test_32x32.mat", 0.999), "test_32x32.mat .*damaged or foreign"),
    "svhn: empty": ("svhn", write("test_32x32.mat", b""), "test_32x32.mat .*: "),
    "svhn: text": ("svhn", write("test_32x32.mat", b"hello" * 100), "test_32x32.mat .*: "),
    "svhn: a terabyte": ("svhn", huge("test_32x32.mat"), "more than 268435456 bytes"),
    "svhn: version 7.3": ("svhn", hdf5, "test_32x32.mat .*version 7.3, which is HDF5"),
    "svhn: no X": ("svhn", mat(X=None), ": no X;"),
    "svhn: no y": ("svhn", mat(y=None), ": no y;"),
    "svhn: float X": ("svhn", mat(X=np.zeros((32, 32, 3, 4))), "X as double .* instead of uint8"),
    "svhn: another X": ("svhn", mat(X=np.zeros((4, 32, 32, 3), np.uint8)), r"X as uint8 \(4, 32, 32, 3\) instead"),
    "svhn: one image": ("svhn", mat(X=np.zeros((32, 32, 3), np.uint8)), r"X as uint8 \(32, 32, 3\) instead"),
    "svhn: more images than memory": ("svhn", claim(2**31 - 1), "X of 2147483647 images, which are more than 87381;"),
    "svhn: one image too many": ("svhn", claim(87382), "X of 87382 images, which are more than 87381;"),
    "svhn: too few labels": ("svhn", mat(y=np.ones((3, 1))), r"y of shape \(3, 1\) for 4 images"),
    "svhn: an eleventh label": ("svhn", mat(y=np.array([[1], [2], [3], [11]])), "labels from 1 to 11 instead of 1 to"),
    "svhn: a zero label": ("svhn", mat(y=np.array([[1], [2], [3], [0]])), "labels from 0 to 3 instead of 1 to 10"),
    "svhn: half a label": ("svhn", mat(y=np.array([[1], [2], [3], [1.5]])), "not whole numbers"),
    "svhn: no number": ("svhn", mat(y=np.array([[1], [2], [3], [np.nan]])), "not whole numbers"),
    "svhn: complex labels": ("svhn", mat(y=np.array([[1], [2], [3], [1j]])), "not whole numbers"),
    "svhn: labels in cells": (
        "svhn",
        mat(y=np.array([[1], ["a"], [3], [4]], dtype=object)),
        "not whole numbers but .* cell",
    ),
    "stl10: missing": ("stl10", delete(STL + "test_y.bin"), ": no test_y.bin"),
    "stl10: a folder for a file": ("stl10", folder(STL + "test_y.bin"), "test_y.bin .*no regular file"),
    "stl10: a terabyte": ("stl10", huge(STL + "test_y.bin"), "test_y.bin .*more than 65536 bytes"),
    "stl10: part of an image": ("stl10", cut(STL + "train_X.bin", 0.51), "train_X.bin .*no multiple of 27648"),
    "stl10: half the images": ("stl10", cut(STL + "train_X.bin"), r"train_y.bin .*shape \(20,\) for 10 images"),
    "stl10: no images": ("stl10", write(STL + "train_X.bin", b""), r"train_y.bin .*shape \(20,\) for 0 images"),
    "stl10: a label of 0": ("stl10", stl_labels(*range(10)), "test_y.bin .*labels from 0 to 9 instead of 1 to 10"),
    "stl10: a label of 11": ("stl10", stl_labels(*range(2, 12)), "labels from 2 to 11 instead of 1 to 10"),
    "stl10: nine names": ("stl10", write(STL + "class_names.txt", b"a b c d e f g h i"), "9 names instead of 10"),
    "stl10: names in no ASCII": ("stl10", write(STL + "class_names.txt", b"\xff" * 20), "class_names.txt .*damaged"),
}


@pytest.mark.parametrize(("kind", "damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_one_clear_sentence(tmp_path: Path, kind: str, damage: Damage, words: str) -> None:
    RELEASES[kind].write(tmp_path)
    damage(tmp_path)
    refused(kind, tmp_path, words)


def test_one_class_name_twice_is_refused(tmp_path: Path) -> None:
    RELEASES["cifar10"].write(tmp_path)
    write(C10 + "batches.meta", python2_pickle({b"label_names": [b"cat"] * 10}))(tmp_path)
    with pytest.raises(DataError, match="different, printable class names"):
        load_data("cifar10", data_dir=tmp_path)


def test_labels_in_matlabs_default_type_are_read(tmp_path: Path) -> None:
    content = RELEASES["svhn"].write(tmp_path)
    path = tmp_path / "test_32x32.mat"
    found = matlab.loadmat(path)
    matlab.savemat(path, {"X": found["X"], "y": found["y"].astype(np.float64)})  # MATLAB's own default type
    assert differences(load_data("svhn", data_dir=tmp_path), as_npz(tmp_path, content)) == []


Change = Callable[[tarfile.TarInfo, bytes], list[tuple[tarfile.TarInfo, bytes]]]


def linked(kind: bytes) -> Change:
    def change(info: tarfile.TarInfo, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        if info.name.endswith("data_batch_5"):
            info.type, info.linkname, info.size = kind, "/etc/hostname", 0
        return [(info, raw)]

    return change


def sparse(info: tarfile.TarInfo, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """One byte that says it is a gigabyte."""
    info.pax_headers, info.size = {"GNU.sparse.size": str(2**30), "GNU.sparse.map": "0,1"}, 1
    return [(info, raw)]


def renamed(old: str, new: str) -> Change:
    def change(info: tarfile.TarInfo, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        info.name = info.name.replace(old, new)
        return [(info, raw)]

    return change


def twice(info: tarfile.TarInfo, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(info, raw)] * 2


def changed(path: Path, change: Callable[[bytearray], object]) -> None:
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)


def bomb(path: Path) -> None:
    """600 MB of zeros in front of the real files."""
    info = tarfile.TarInfo("zeros")
    info.size = 600 * 2**20
    with gzip.open(path, "rb") as file:
        rest = file.read()
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(600):
            file.write(bytes(2**20))
        file.write(rest)


def oversized(path: Path) -> None:
    info = tarfile.TarInfo("cifar-10-batches-py/batches.meta")
    info.size = 2**20 + 1
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.addfile(info, io.BytesIO(bytes(info.size)))


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "damaged or foreign"),
    "text": (lambda path: path.write_text("hello"), "damaged or foreign"),
    "a folder": (become_a_folder, "no regular file"),
    "gzip of no tar": (lambda path: path.write_bytes(gzip.compress(b"hello" * 1000)), "damaged or foreign"),
    "gzip of nothing": (lambda path: path.write_bytes(gzip.compress(b"")), "damaged or foreign"),
    "not compressed": (lambda path: path.write_bytes(gzip.decompress(path.read_bytes())), "damaged or foreign"),
    "cut short": (lambda path: changed(path, lambda raw: raw.__delitem__(slice(len(raw) // 2, None))), "damaged or"),
    "the last byte is missing": (lambda path: changed(path, bytearray.pop), "damaged or foreign"),
    "another checksum": (
        lambda path: changed(path, lambda raw: raw.__setitem__(-6, raw[-6] ^ 1)),
        "damaged or foreign",
    ),
    "a symbolic link": (lambda path: repack(path, linked(tarfile.SYMTYPE)), "data_batch_5 as a link or another"),
    "a hard link": (lambda path: repack(path, linked(tarfile.LNKTYPE)), "data_batch_5 as a link or another"),
    "a device": (lambda path: repack(path, linked(tarfile.CHRTYPE)), "data_batch_5 as a link or another"),
    "a folder as member": (lambda path: repack(path, linked(tarfile.DIRTYPE)), "data_batch_5 as a link or another"),
    "a sparse member": (lambda path: repack(path, sparse), "as a link or another special file"),
    "a missing member": (lambda path: repack(path, renamed("data_batch_2", "data_batch_9")), ": no data_batch_2"),
    "a member twice": (lambda path: repack(path, twice), ": .* twice"),
    "members elsewhere": (lambda path: repack(path, renamed("cifar-10", "../cifar-10")), ": no data_batch_1"),
    "members of the root": (lambda path: repack(path, renamed("cifar-10", "/cifar-10")), ": no data_batch_1"),
    "the binary version": (lambda path: repack(path, renamed("-py/", "-bin/")), ": no data_batch_1"),
    "a member too large": (oversized, "batches.meta of more than 1048576 bytes"),
    "unpacks to anything": (bomb, "an archive of more than 536870912 bytes"),
}


@pytest.mark.parametrize(("damage", "words"), ARCHIVES.values(), ids=ARCHIVES)
def test_a_damaged_archive_is_one_clear_sentence(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    release = RELEASES["cifar10"]
    release.write(tmp_path)
    archive = pack(tmp_path, release.folder, release.archive)
    damage(archive)
    refused("cifar10", tmp_path, words)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_names_with_a_dot_in_front_are_the_same_members(tmp_path: Path) -> None:
    release = RELEASES["cifar10"]
    content = release.write(tmp_path)
    repack(pack(tmp_path, release.folder, release.archive), renamed("cifar-10", "./cifar-10"))
    assert differences(load_data("cifar10", data_dir=tmp_path), as_npz(tmp_path, content)) == []
