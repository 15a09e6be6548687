"""Of a checkpoint and of initial weights the very bytes that were checked are read, and no more than they hold."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import resource
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from smart_train import CheckpointError
from smart_train.checkpoint.reader import read_plain
from smart_train.training.initial_weights import read_initial_weights


def entries_of(value: object) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(entries: Mapping[str, bytes], *, before: bytes = b"", method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip that begins with ``before``, without the file modes that zipfile gives."""
    target = io.BytesIO(before)
    target.seek(0, io.SEEK_END)
    with zipfile.ZipFile(target, "a", method) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
            info.external_attr = 0
    return target.getvalue()


def directory_of(archive: bytes) -> tuple[int, bytes, int]:
    """Return where the directory of a zip begins, the directory, and how many entries it has."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        start, count = opened.start_dir, len(opened.infolist())
    return start, archive[start:-22], count


def two_faced(checked: bytes, read: bytes) -> bytes:
    """Return a file whose end record names two directories: ``checked`` by where it stands, ``read`` by its number."""

    def end_record(start: int, size: int, count: int) -> bytes:
        return struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)

    first, directory, count = directory_of(read)
    local = read[:first]
    both = archive_of(entries_in(checked), before=local)
    second, other, other_count = directory_of(both)
    hidden = both[:second] + directory
    place = len(hidden)
    file = hidden + end_record(second, len(directory), count)
    file += other + end_record(len(file), len(other), other_count)
    file += struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    return file + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def entries_in(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_a_zip_that_is_two_archives_is_read_as_the_one_that_was_checked(tmp_path: Path) -> None:
    small, large = {"w": torch.zeros(3)}, {"w": torch.ones(2**20)}
    path = tmp_path / "two.pt"
    path.write_bytes(
        two_faced(archive_of(entries_of(small)), archive_of(entries_of(large), method=zipfile.ZIP_DEFLATED))
    )
    assert path.stat().st_size < 20_000
    assert torch.load(path, weights_only=True)["w"].shape == (2**20,), "torch no longer reads the other archive"
    for read in (lambda: read_plain(path), lambda: read_initial_weights(path).tensors):
        try:
            found = read()
        except CheckpointError:
            continue  # a newer Python refuses the file itself
        assert found["w"].shape == (3,)


def test_numbers_are_not_read_once_for_each_way_to_write_their_name(tmp_path: Path) -> None:
    """torch finds the entry ``data/abcdefgh`` by 256 names in capitals and small letters: 256 tensors of one."""
    entries = entries_of({"w": torch.zeros(2**18)})
    entries["archive/data/abcdefgh"] = entries.pop("archive/data/0")
    plain = entries["archive/data.pkl"]
    start, end = plain.index(b"X\x01\x00\x00\x00w"), plain.index(b"s.")
    tensor = plain[start + 6 :][plain[start + 6 :].index(b"c") : end - start - 6]
    head = plain[:start]
    items = b""
    for i in range(256):
        key = "".join(c.upper() if i >> bit & 1 else c for bit, c in enumerate("abcdefgh")).encode()
        name = f"{i:03}".encode()
        one = tensor.replace(b"X\x01\x00\x00\x000", b"X\x08\x00\x00\x00" + key)
        items += b"X\x03\x00\x00\x00" + name + one + b"s"
    entries["archive/data.pkl"] = head + items + b"."
    entries |= {f"archive/{i}": b"" for i in range(200)}  # so that the file may have as many tensors
    path = tmp_path / "names.pt"
    path.write_bytes(archive_of(entries))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_plain, read_initial_weights):
        with pytest.raises(CheckpointError, match="was not run or loaded"):
            read(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


_BOMB = b"cbuiltins\nbytearray\nJ\x00\x00\x00\x10\x85R0"  # 256 MiB, made and dropped


@pytest.mark.parametrize("which", range(5))
def test_each_of_the_five_pickles_of_an_old_file_is_checked(tmp_path: Path, which: int) -> None:
    file = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    data, starts = file.getvalue(), [0]
    reader = io.BytesIO(data)
    for _ in range(5):
        list(pickletools.genops(reader))
        starts.append(reader.tell())
    parts = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    parts[which] = parts[which][:2] + _BOMB + parts[which][2:]
    path = tmp_path / "old.pth"
    path.write_bytes(b"".join(parts))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="was not run or loaded"):
        read_initial_weights(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


def test_calls_that_make_large_objects_out_of_five_bytes_are_refused(tmp_path: Path) -> None:
    entries = entries_of({"w": torch.zeros(3)})
    many = b"ccollections\nOrderedDict\nq\x00)q\x01](" + b"h\x00h\x01R" * 500_000 + b"e."
    entries["archive/data.pkl"] = b"\x80\x02" + many
    path = tmp_path / "calls.pt"
    path.write_bytes(archive_of(entries))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="was not run or loaded"):
        read_plain(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_regular_file_is_neither_waited_for_nor_read_without_end(tmp_path: Path, suffix: str) -> None:
    pipe, device = tmp_path / f"pipe{suffix}", tmp_path / f"device{suffix}"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(CheckpointError, match="damaged"):
            read_initial_weights(path)


def test_a_header_of_safetensors_is_bounded(tmp_path: Path) -> None:
    names = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(100_000))
    header = f"{{{names}}}".encode()
    path = tmp_path / "names.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="a damaged one; copy it again"):
        read_initial_weights(path)


def test_what_is_checked_is_what_was_read_whatever_happens_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is exchanged for another one as soon as it has been read."""
    path = tmp_path / "w.pth"
    torch.save({"w": torch.zeros(3)}, path)
    before = path.read_bytes()
    whole = zipfile.ZipFile.infolist

    def exchanged(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        path.write_bytes(pickle.dumps("another file"))
        return whole(archive)

    monkeypatch.setattr(zipfile.ZipFile, "infolist", exchanged)
    found = read_initial_weights(path)
    assert found.tensors["w"].shape == (3,)
    assert found.sha256 == hashlib.sha256(before).hexdigest()
