"""What users with folders of pictures reported: each failed before it was mended."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smart_train.data.images import ImageSet
from smart_train.data.load import load_data
from smart_train.errors import DataError
from train.data_files import differences

GENERATOR = np.random.default_rng(0)


def put(path: Path, *, width: int = 8, height: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = GENERATOR.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")  # whatever it is called, so that no pixel changes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes, 24 pictures for training and 6 for test."""
    root = tmp_path / "pictures"
    for part, count in (("train", 12), ("test", 3)):
        for name in ("cat", "dog"):
            for i in range(count):
                put(root / part / name / f"{i:02}.png")
    return root


def numbers(data: ImageSet) -> tuple[int, int]:
    return len(data.train) + len(data.validation), len(data.test)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".thumbnails"])
def test_folders_that_tools_leave_are_no_classes(pictures: Path, name: str) -> None:
    before = load_data(pictures)
    for part in ("train", "test"):
        put(pictures / part / name / "0-checkpoint.png")
        put(pictures / part / "cat" / name / "0-checkpoint.png")
    assert differences(before, load_data(pictures)) == []


def test_pictures_deeper_in_a_class_are_read_as_torchvision_reads_them(pictures: Path) -> None:
    for i in range(6):
        put(pictures / "train" / "dog" / "day 2" / "morning" / f"{i}.png")
    (pictures / "train" / "dog" / "day 2" / "back").symlink_to(pictures / "train" / "dog")
    found = load_data(pictures)
    assert numbers(found) == (30, 6)
    assert np.bincount(np.concatenate([found.train.labels, found.validation.labels])).tolist() == [12, 18]


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".jfif", ".jpe", ".JPG"])
def test_suffixes_that_pillow_reads_are_read(pictures: Path, suffix: str) -> None:
    for i in range(3):
        put(pictures / "train" / "cat" / f"more{i}{suffix}")
    assert numbers(load_data(pictures)) == (27, 6)


def test_files_that_are_not_read_are_counted(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_data(pictures)
    assert not caplog.messages
    for i in range(3):
        put(pictures / "train" / "cat" / f"{i}.avif")
    (pictures / "train" / "dog" / "._00.png").write_bytes(b"AppleDouble")
    (pictures / "train" / "dog" / ".DS_Store").write_bytes(b"")
    (pictures / "train" / "dog" / "a\x1b[2Jb.hei\x1bc").write_bytes(b"")
    put(pictures / "test" / "lost.png")
    assert numbers(load_data(pictures)) == (24, 6)
    (said,) = caplog.messages
    assert said.isprintable()
    for words in ("3 .avif", "1 hidden", "1 .hei?c", "1 outside of the folders of classes", ".jfif"):
        assert words in said


def break_some(root: Path, count: int) -> list[Path]:
    """Half of them without a header, and half without the end."""
    broken = sorted((root / "train").rglob("*.png"))[:count]
    for i, path in enumerate(broken):
        path.write_bytes(b"" if i % 2 else path.read_bytes()[:-60])
    return broken


def test_one_broken_picture_does_not_end_an_hour_of_reading(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = break_some(pictures, 3)
    with pytest.raises(DataError, match=r"--max-broken [123]$"):
        load_data(pictures)
    with pytest.raises(DataError, match=r"--max-broken 3$") as caught:
        load_data(pictures, max_broken=2)
    assert all(str(path) in str(caught.value) for path in broken)
    found = load_data(pictures, max_broken=3, cache_dir=tmp_path / "cache")
    assert numbers(found) == (21, 6)
    (note,) = found.notes
    assert note == "broken pictures left out: 3"
    assert all(str(path) in caplog.text for path in broken)
    for path in broken:
        path.rename(path.with_suffix(".txt"))
    assert differences(found, load_data(pictures)) == []


def test_a_cache_made_with_broken_pictures_left_out_does_not_hide_them(pictures: Path, tmp_path: Path) -> None:
    break_some(pictures, 3)
    whole = load_data(pictures, max_broken=3, cache_dir=tmp_path / "cache")
    again = load_data(pictures, max_broken=5, cache_dir=tmp_path / "cache")
    assert differences(whole, again) == []
    assert again.notes == whole.notes
    with pytest.raises(DataError, match="cannot read"):
        load_data(pictures, cache_dir=tmp_path / "cache")


def test_many_broken_pictures_are_listed_up_to_ten(pictures: Path) -> None:
    hostile = pictures / "train" / "cat" / "\x1b[2J.png"
    hostile.write_bytes(b"")
    for path in (pictures / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_data(pictures)
    said = str(caught.value)
    assert said.count("/pictures/train/") == 10
    assert "nor 12 more: " in said
    assert said.isprintable()
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot read"):  # nothing is left to read
        load_data(pictures, max_broken=1000)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("test/*/*.png", "^all test pictures in "),
        ("train/dog/*.png", "^all training pictures of dog in "),
        (
            "*/*/*.png",
            r"^cannot read .* as a picture \(of no format that is read\), nor 29 more: .*; remove or replace it$",
        ),
    ],
)
def test_leaving_out_broken_pictures_says_so_if_nothing_is_left(
    pictures: Path, tmp_path: Path, broken: str, words: str
) -> None:
    for path in pictures.glob(broken):
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match=words):
            load_data(pictures, max_broken=30, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("labelled", [True, False])
def test_val_is_the_test_part_beside_pictures_for_test_without_classes(pictures: Path, labelled: bool) -> None:
    before = load_data(pictures)
    (pictures / "test").rename(pictures / "val")
    for i in range(3):
        put(pictures / "test" / f"{i}.png")
    if labelled:
        put(pictures / "test" / "cat" / "0.png")
    found = load_data(pictures)
    if labelled:
        assert (numbers(found), found.notes) == ((24, 1), ())
    else:
        assert differences(before, found) == []
        assert found.notes == ("pictures in test are in no folders of classes, so val is the test part",)


def test_pictures_for_test_without_classes_are_no_test_part(pictures: Path) -> None:
    shutil.rmtree(pictures / "test")
    put(pictures / "test" / "0.png")
    with pytest.raises(DataError, match=r"^no folders of classes in test of .*; sort .*, or give folder:.*/train to "):
        load_data(pictures)


def test_a_folder_that_is_called_as_a_picture_is_a_folder(pictures: Path) -> None:
    for i in range(6):
        put(pictures / "train" / "dog" / "scan.png" / f"{i}.png")
    assert numbers(load_data(pictures)) == (30, 6)
    (pictures / "train" / "dog" / "empty.png").mkdir()
    with pytest.raises(DataError, match=r"^cannot read .*/empty\.png as a picture \(Is a directory\); remove or "):
        load_data(pictures)
    assert numbers(load_data(pictures, max_broken=1)) == (30, 6)


@pytest.fixture
def unsplit(tmp_path: Path) -> Path:
    """Classes of 20, 10, 3, 2 and 1 pictures, in a folder without parts."""
    root = tmp_path / "unsplit"
    for name, count in zip("abcde", (20, 10, 3, 2, 1), strict=True):
        for i in range(count):
            put(root / name / f"{i}.png")
    return root


def test_a_folder_without_train_and_test_is_split(unsplit: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = load_data(unsplit)
    assert np.bincount(found.test.labels, minlength=5).tolist() == [3, 2, 1, 1, 0]
    assert np.bincount(found.train.labels, minlength=5).min() == 1
    assert numbers(found) == (29, 7)
    assert differences(found, load_data(unsplit)) == [], "always the same way"
    assert "7 of 36 pictures" in found.notes[0]
    assert "seed 20230205" in found.notes[0]
    assert found.notes[0] in caplog.text
    shown = {image.tobytes() for image in found.train.images} | {image.tobytes() for image in found.validation.images}
    assert not shown & {image.tobytes() for image in found.test.images}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        for i in range(10):
            put(tmp_path / "vehicles" / name / f"{i}.png")
    assert load_data(tmp_path / "vehicles").class_names == ("bus", "car", "train")


def test_one_part_alone_is_not_split(pictures: Path) -> None:
    shutil.rmtree(pictures / "test")
    with pytest.raises(DataError, match="no folders train and test"):
        load_data(pictures)
    assert numbers(load_data(pictures / "train")) == (20, 4)


def test_classes_of_one_picture_each_cannot_be_split(tmp_path: Path) -> None:
    for name in "abcdefghijkl":
        put(tmp_path / "one" / name / "0.png")
    with pytest.raises(DataError, match=r"one picture a class .*; add some"):
        load_data(tmp_path / "one")


@pytest.fixture
def mixed(pictures: Path) -> Path:
    put(pictures / "train" / "cat" / "wide.png", width=40, height=16)
    put(pictures / "train" / "dog" / "tall.png", width=16, height=50)
    return pictures


def test_pictures_of_different_sizes_are_scaled_and_cut(mixed: Path) -> None:
    with pytest.raises(DataError, match=r"differ in size, 8x8 and 40x16 .*--image-size"):
        load_data(mixed)
    found = load_data(mixed, image_size=16)
    assert found.shape == (3, 16, 16)
    assert numbers(found) == (26, 6)
    images = np.concatenate([found.train.images, found.validation.images])
    pixels = np.asarray(Image.open(mixed / "train" / "cat" / "wide.png"))
    assert any(np.array_equal(image, pixels[:, 12:28]) for image in images), "its middle, at its own size"
    assert load_data(mixed, image_size=(10, 12)).shape == (3, 10, 12)


@pytest.mark.parametrize("size", [0, 5000, (8, -1)])
def test_an_impossible_image_size_is_refused(mixed: Path, size: int | tuple[int, int]) -> None:
    with pytest.raises(DataError, match="expected an image size of 1 to 4096"):
        load_data(mixed, image_size=size)


def test_an_image_size_is_for_folders() -> None:
    with pytest.raises(DataError, match="for folder:DIR, and the images of digits have one"):
        load_data("digits", image_size=32)


def test_the_cache_knows_sizes_apart_and_shares_what_is_equal(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir = tmp_path / "cache"
    whole = load_data(pictures, cache_dir=cache_dir)
    half = load_data(pictures, cache_dir=cache_dir, image_size=4)
    assert (whole.shape, half.shape) == ((3, 8, 8), (3, 4, 4))
    monkeypatch.setattr("smart_train.data.folder.read_pictures", None)  # whoever reads again fails
    assert differences(whole, load_data(pictures, cache_dir=cache_dir)) == []
    assert differences(whole, load_data(pictures, cache_dir=cache_dir, image_size=8)) == []
    assert differences(half, load_data(pictures, cache_dir=cache_dir, image_size=4)) == []


def test_sixteen_bit_grey_pictures_are_one_channel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(10):
            path = tmp_path / "grey" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 257 * (10 * i + 5), np.uint16)).save(path)
    found = load_data(tmp_path / "grey")
    assert found.shape == (1, 8, 8)
    assert set(np.unique(found.train.images)) <= {10 * i + 5 for i in range(10)}


def test_nothing_is_said_twice_or_logged_without_need(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        load_data(pictures)
    assert not [record for record in caplog.records if record.name.startswith("smart_train.data")]
