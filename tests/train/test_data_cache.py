from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smart_train.data import cache
from smart_train.data.images import ImageSet
from smart_train.data.load import load_data
from smart_train.data.pictures import read_pictures
from smart_train.errors import DataError
from train.data_files import RELEASES, arrays, by_class, differences, pack, write_folder, write_npz

READ = "smart_train.data.folder.read_pictures"


class Places:
    """A folder of pictures and a cache."""

    def __init__(self, root: Path) -> None:
        self.pictures, self.cache = root / "pictures", root / "cache"
        self.spec = write_folder(self.pictures, by_class(arrays()))
        self.reads = 0

    def load(self) -> ImageSet:
        return load_data(self.spec, cache_dir=self.cache)

    @property
    def entry(self) -> Path:
        """The one entry."""
        (shelf,) = (self.cache / "data").iterdir()
        (entry,) = (path for path in shelf.iterdir() if path.is_dir())
        return entry


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    found = Places(tmp_path)

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.reads += 1
        return read_pictures(*args, **kwargs)

    monkeypatch.setattr(READ, counted)
    return found


@pytest.mark.parametrize("kind", [*RELEASES, "folder"])
def test_a_set_is_the_same_from_source_and_from_cache(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "folder":
        spec = write_folder(tmp_path, by_class(arrays()))
    else:
        spec = kind
        RELEASES[kind].write(tmp_path)
    places: dict[str, Any] = {"data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
    source = load_data(spec, data_dir=tmp_path)
    cold = load_data(spec, **places)
    monkeypatch.setattr(cache, "_store", None)  # whoever would store again fails
    warm = load_data(spec, **places)
    assert (source.kind, cold.kind, warm.kind) == (kind, kind, kind)
    assert differences(source, cold) == []
    assert differences(source, warm) == []
    mapped = warm.test.images
    while isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    assert isinstance(mapped, np.memmap), "the arrays of a cache are mapped, not read"
    warm.test.images[0, 0, 0, 0] ^= 1
    assert differences(source, load_data(spec, **places)) == [], "writing to the array must not reach the cache"


@pytest.mark.parametrize("spec", ["digits", "npz"])
def test_what_is_quickly_read_is_not_cached(tmp_path: Path, spec: str) -> None:
    load_data(write_npz(tmp_path / "a.npz", arrays()) if spec == "npz" else spec, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_folder_and_an_archive_have_entries_of_their_own(tmp_path: Path) -> None:
    release = RELEASES["cifar10"]
    release.write(tmp_path)
    places: dict[str, Any] = {"data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
    first = load_data("cifar10", **places)
    pack(tmp_path, release.folder, release.archive)
    assert differences(first, load_data("cifar10", **places)) == []
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2


def test_one_source_has_one_entry_by_whatever_name(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = places.load()
    monkeypatch.chdir(places.pictures.parent)
    places.pictures.with_name("link").symlink_to(places.pictures)
    for spec in ("folder:pictures", "folder:./pictures/", "folder:link"):
        assert differences(whole, load_data(spec, cache_dir=places.cache)) == []
    assert places.reads == 1


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "another time": lambda root: touch(root / "train" / "class0" / "000.png"),
    "a new picture": lambda root: shutil.copy(root / "train/class0/000.png", root / "train/class0/new.png"),
    "a picture less": lambda root: (root / "test" / "class2" / "008.png").unlink(),
    "another name": lambda root: (root / "train/class0/000.png").rename(root / "train/class0/zzz.png"),
    "another class": lambda root: (root / "train/class0/000.png").rename(root / "train/class1/000.png"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_source_is_read_anew_and_the_old_entry_goes(places: Places, change: Callable[[Path], object]) -> None:
    places.load()
    old = places.entry
    change(places.pictures)
    assert differences(places.load(), load_data(places.spec)) == []
    assert places.entry.name != old.name
    reads = places.reads
    places.load()
    assert places.reads == reads


def test_another_decoder_or_reader_reads_anew(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.load()
    monkeypatch.setattr("PIL.__version__", "0")
    places.load()
    monkeypatch.setattr(cache, "_VERSION", cache._VERSION + 1)
    places.load()
    assert places.reads == 3
    assert places.entry.is_dir()


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def about(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def act(entry: Path) -> None:
        content = json.loads((entry / "set.json").read_text())
        change(content)
        (entry / "set.json").write_text(json.dumps(content))

    return act


def a_pickle(entry: Path) -> None:
    with (entry / "train_labels.npy").open("wb") as file:
        np.save(file, np.array([{}], dtype=object))


def an_archive(entry: Path) -> None:
    with (entry / "train_labels.npy").open("wb") as file:
        np.savez(file, np.zeros(3))


def empty(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()


def a_folder(entry: Path) -> None:
    (entry / "train_images.npy").unlink()
    (entry / "train_images.npy").mkdir()


ENTRIES: dict[str, Callable[[Path], object]] = {
    "no images": lambda entry: (entry / "train_images.npy").unlink(),
    "no set.json": lambda entry: (entry / "set.json").unlink(),
    "nothing": empty,
    "images cut short": lambda entry: os.truncate(entry / "train_images.npy", 300),
    "an empty file": lambda entry: os.truncate(entry / "train_images.npy", 0),
    "a flipped pixel": lambda entry: flip_a_bit(entry / "train_images.npy"),
    "a flipped label": lambda entry: flip_a_bit(entry / "test_labels.npy"),
    "an older array": lambda entry: np.save(entry / "test_images.npy", np.zeros((9, 6, 5, 1), np.uint8)),
    "another type": lambda entry: np.save(entry / "test_images.npy", np.zeros((9, 6, 5, 1))),
    "a pickle": a_pickle,
    "an archive": an_archive,
    "a folder for a file": a_folder,
    "no JSON": lambda entry: (entry / "set.json").write_text("{"),
    "a JSON list": lambda entry: (entry / "set.json").write_text("[]"),
    "no checksum": about(lambda content: content.pop("checksum")),
    "another name": about(lambda content: content["class_names"].__setitem__(0, "dog")),
    "numbers for names": about(lambda content: content.update(class_names=[1, 2, 3])),
    "a name less": about(lambda content: content["class_names"].pop()),
}


@pytest.mark.parametrize("damage", ENTRIES.values(), ids=ENTRIES)
def test_a_damaged_entry_is_read_anew_and_mended(places: Places, damage: Callable[[Path], object]) -> None:
    whole = places.load()
    damage(places.entry)
    assert differences(whole, places.load()) == []
    assert places.reads == 2
    assert differences(whole, places.load()) == []
    assert places.reads == 2, "the entry was not mended"


def test_what_a_killed_process_left_is_removed(places: Places) -> None:
    places.load()
    left = places.entry.with_name(".new-left")
    left.mkdir()
    (left / "train_images.npy").write_bytes(b"half")
    touch(places.pictures / "train" / "class0" / "000.png")
    places.load()
    assert not left.exists()
    assert places.entry.is_dir()


def below_a_file(path: Path) -> None:
    path.with_name("file").write_text("")
    path.symlink_to("file/cache")


CACHES: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text(""),
    "below a file": below_a_file,
    "a link to nowhere": lambda path: path.symlink_to("/proc/nowhere/at/all"),
}


@pytest.mark.parametrize("block", CACHES.values(), ids=CACHES)
def test_a_cache_that_cannot_be_written_is_no_error(places: Places, block: Callable[[Path], object]) -> None:
    block(places.cache)
    assert differences(places.load(), load_data(places.spec)) == []


def test_a_full_disk_is_no_error_and_leaves_nothing(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        whole = places.load()
    (shelf,) = (places.cache / "data").iterdir()
    assert [path.name for path in shelf.iterdir()] == [".lock"]
    assert differences(whole, places.load()) == []
    assert places.entry.is_dir()


def test_a_source_that_changes_while_it_is_read_is_not_cached(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(*args: Any, **kwargs: Any) -> Any:
        found = read_pictures(*args, **kwargs)
        touch(places.pictures / "train" / "class0" / "000.png")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(READ, changing)
        places.load()
    assert not (places.cache / "data").exists()
    places.load()
    assert places.entry.is_dir()


def test_a_refused_source_leaves_no_entry(places: Places) -> None:
    (places.pictures / "train" / "class0" / "000.png").write_text("hello")
    with pytest.raises(DataError, match="cannot read"):
        places.load()
    assert not list(places.cache.rglob("*.npy"))


def test_nobody_waits_for_a_process_that_is_storing(places: Places) -> None:
    whole = places.load()
    shutil.rmtree(places.entry)
    (shelf,) = (places.cache / "data").iterdir()
    with (shelf / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert differences(whole, places.load()) == []
        assert [path.name for path in shelf.iterdir()] == [".lock"]
    places.load()
    assert places.entry.is_dir()


def test_threads_and_processes_that_race_all_get_the_set(places: Places) -> None:
    whole = load_data(places.spec)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: places.load(), range(24)))
    assert all(differences(whole, one) == [] for one in found)
    shutil.rmtree(places.cache)
    code = (
        "import sys; from pathlib import Path; from smart_train.data.load import load_data\n"
        "print(load_data(sys.argv[1], cache_dir=Path(sys.argv[2])).digest)"
    )
    command = [sys.executable, "-W", "error", "-c", code, places.spec, str(places.cache)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in racing] == [whole.digest] * 2
    assert [process.returncode for process in racing] == [0, 0]
    assert places.entry.is_dir()
