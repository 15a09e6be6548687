from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smart_train.data import pictures
from smart_train.data.load import load_data
from smart_train.errors import DataError
from train.data_files import (
    Arrays,
    Bars,
    arrays,
    as_npz,
    by_class,
    differences,
    write_folder,
    write_picture,
    write_tiny_imagenet,
)


def test_the_first_validation_images_are_of_all_classes_even_where_the_data_is_sorted(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path / "pictures", by_class(arrays())))
    assert (np.diff(data.train.labels) >= 0).all(), "an image folder is read class by class"
    assert (np.diff(data.validation.labels) < 0).any()


LAYOUTS: dict[str, Callable[[Path, Arrays], str]] = {
    "train and test": write_folder,
    "train and val": lambda root, content: write_folder(root, content, test="val"),
    "Tiny-ImageNet": write_tiny_imagenet,
}


def named(content: Arrays) -> Arrays:
    return content | {"class_names": np.array(["class0", "class1", "class2"])}


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_a_folder_and_an_npz_of_the_same_images_are_one_data_set(
    tmp_path: Path, write: Callable[[Path, Arrays], str], channels: int
) -> None:
    content = by_class(arrays(channels=channels))
    if write is write_tiny_imagenet:  # which lists its test pictures by name alone
        content |= {name: array for name, array in arrays(channels=channels).items() if name.startswith("test")}
    found = load_data(write(tmp_path / "pictures", content))
    assert found.kind == "folder"
    assert differences(found, as_npz(tmp_path, named(content))) == []


def test_val_is_no_test_part_where_there_is_a_test_folder(tmp_path: Path) -> None:
    content = by_class(arrays())
    write_folder(tmp_path / "pictures", arrays(test=6), test="val")
    for file in (tmp_path / "pictures" / "train").rglob("*.png"):
        file.unlink()
    assert differences(load_data(write_folder(tmp_path / "pictures", content)), as_npz(tmp_path, named(content))) == []


def test_one_picture_in_colour_makes_the_set_rgb(tmp_path: Path) -> None:
    content = by_class(arrays())
    spec = write_folder(tmp_path / "pictures", content)
    colour = arrays(channels=3)["train_images"][0]
    write_picture(tmp_path / "pictures" / "train" / "class2" / "029.png", colour)
    for part in ("train", "test"):
        content[f"{part}_images"] = content[f"{part}_images"].repeat(3, axis=-1)
    content["train_images"][-1] = colour
    assert differences(load_data(spec), as_npz(tmp_path, named(content))) == []


def test_many_tasks_give_what_one_gives_and_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_folder(tmp_path, arrays())
    whole = load_data(spec)
    monkeypatch.setattr(pictures, "_CHUNK", 4)
    bars = Bars()
    assert differences(whole, load_data(spec, progress=bars)) == []
    assert bars.seen == [("checking pictures", 39, 39), ("reading pictures", 39, 39)]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_of_several_damaged_pictures_the_first_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(pictures, "_CHUNK", chunk)
    spec = write_folder(tmp_path, arrays())
    files = sorted((tmp_path / "train").rglob("*.png"))
    for path in files[7:]:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"^cannot read .* as a picture") as caught:
        load_data(spec)
    assert str(files[7]) in str(caught.value)


def remove(pattern: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        for path in root.glob(pattern):
            path.unlink()

    return act


def first_picture(root: Path) -> Path:
    return root / "train" / "class1" / "001.png"


def cut_short(root: Path) -> None:
    path = first_picture(root)
    path.write_bytes(path.read_bytes()[:60])


def a_bomb(root: Path, *, side: int = 2**13 + 1) -> None:
    """A few bytes that say they are a picture of a little more than 2**26 pixels, or of any side."""
    path = first_picture(root)
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">2I", side, side)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)


def replaced_by_a_folder(root: Path) -> None:
    first_picture(root).unlink()
    first_picture(root).mkdir()


def dangling(root: Path) -> None:
    first_picture(root).unlink()
    first_picture(root).symlink_to("nowhere.png")


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FOLDERS = {
    "no such folder": (lambda root: root.rename(root.with_name("other")), "no folders train and test in"),
    "no test folder": (lambda root: (root / "test").rename(root / "other"), "no folders train and test in"),
    "a class only in test": (lambda root: (root / "test" / "dog").mkdir(), "not in train: dog"),
    "a class without pictures": (lambda root: (root / "train" / "dog").mkdir(), "train/dog"),
    "no test pictures": (remove("test/*/*"), "no picture in test"),
    "no picture": (lambda root: first_picture(root).write_text("hello"), "cannot read .*001.png as a picture"),
    "an empty file": (lambda root: first_picture(root).write_bytes(b""), "cannot read .*001.png as a picture"),
    "a format that only other programs read": (
        lambda root: Image.new("L", (5, 6)).save(first_picture(root), format="TGA"),
        "cannot read .*001.png as a picture",
    ),
    "more pixels than are decoded": (a_bomb, "at most 67108864 pixels, got more in .*001.png"),
    "far more pixels": (lambda root: a_bomb(root, side=2**16), "at most 67108864 pixels, got more in .*001.png"),
    "a folder for a picture": (replaced_by_a_folder, "cannot read .*001.png as a picture"),
    "a dangling link": (dangling, "cannot read .*001.png as a picture"),
    "a truncated picture": (cut_short, "(cannot read|expected a picture).*001.png"),
    "another size": (lambda root: Image.new("L", (9, 9)).save(first_picture(root)), "differ in size, 5x6 and 9x9"),
    "another size when upright": (
        lambda root: Image.new("L", (5, 6)).save(first_picture(root), exif=turned()),
        "differ in size, 5x6 and 6x5",
    ),
}


@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
@pytest.mark.parametrize(("damage", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_damaged_folder_is_one_clear_sentence(
    tmp_path: Path, damage: Callable[[Path], object], words: str, cached: bool
) -> None:
    cache_dir = tmp_path / "cache" if cached else None
    spec = write_folder(tmp_path / "pictures", arrays())
    load_data(spec, cache_dir=cache_dir)
    damage(tmp_path / "pictures")
    with pytest.raises(DataError, match=words) as caught:
        load_data(spec, cache_dir=cache_dir)
    assert "\n" not in str(caught.value)


def test_pictures_too_large_for_a_checkpoint_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    content = arrays() | {
        "train_images": np.zeros((30, 1, 4097, 1), np.uint8),
        "test_images": np.zeros((9, 1, 4097, 1), np.uint8),
    }
    with pytest.raises(DataError, match="at most 4096 pixels a side, got 4097x1"):
        load_data(write_folder(tmp_path, content))


def annotate(text: Callable[[str], str]) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        path = root / "val" / "val_annotations.txt"
        path.write_text(text(path.read_text()))

    return act


TINY = {
    "a picture without a line": (annotate(lambda text: text[text.index("\n") + 1 :]), "1 without the other.*val_000"),
    "a line without a picture": (remove("val/images/val_003.JPEG"), "1 without the other.*val_003"),
    "a picture elsewhere": (annotate(lambda text: text.replace("val_000", "../val_000")), "2 without the other"),
    "a class that is not in train": (annotate(lambda text: text.replace("class2", "class7")), "a class of train"),
    "no tabs": (annotate(lambda text: text.replace("\t", " ")), "a tab and a class of train"),
    "no text": (annotate(lambda _: "\x00\n"), "a tab and a class of train"),
    "an empty file": (annotate(lambda _: ""), "9 without the other"),
}


@pytest.mark.parametrize(("damage", "words"), TINY.values(), ids=TINY)
def test_a_damaged_tiny_imagenet_is_one_clear_sentence(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    spec = write_tiny_imagenet(tmp_path, arrays())
    load_data(spec)
    damage(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)
    assert "http://cs231n.stanford.edu/tiny-imagenet-200.zip" in str(caught.value)
