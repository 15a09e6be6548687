from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smart_train.data import load_data
from smart_train.data.images import ImageSet, Split, stratified
from smart_train.errors import DataError
from train.networks import image_set

Arrays = dict[str, Any]


def arrays(*, colour: bool = False) -> Arrays:
    generator = np.random.default_rng(0)
    channels = 3 if colour else 1
    return {
        "train_images": generator.integers(0, 256, (30, 6, 5, channels), dtype=np.uint8),
        "train_labels": np.arange(30) % 3,
        "test_images": generator.integers(0, 256, (9, 6, 5, channels), dtype=np.uint8),
        "test_labels": np.arange(9) % 3,
    }


def write_npz(path: Path, content: Arrays) -> str:
    np.savez(path, **content)
    return f"npz:{path}"


def write_folder(root: Path, content: Arrays) -> str:
    for part in ("train", "test"):
        for i, (image, label) in enumerate(zip(content[f"{part}_images"], content[f"{part}_labels"], strict=True)):
            directory = root / part / f"class{label}"
            directory.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(directory / f"{i:03}.png")
    return f"folder:{root}"


def by_class(content: Arrays) -> Arrays:
    """The same images in the order in which folders list them."""
    result = dict(content)
    for part in ("train", "test"):
        order = np.argsort(content[f"{part}_labels"], kind="stable")
        for what in ("images", "labels"):
            result[f"{part}_{what}"] = content[f"{part}_{what}"][order]
    return result


def same(a: Split, b: Split) -> bool:
    return np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)


def test_digits_are_split_by_class_and_always_the_same_way() -> None:
    data = load_data("digits")
    assert (data.kind, data.shape, data.class_names) == ("digits", (1, 8, 8), tuple("0123456789"))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1181, 256, 360]
    assert len(np.unique(data.train.images)) == 17
    # The figures that are published stand for these very images.
    assert data.digest == "028b28d5d09c0dc75da11eaed8a546ac8680509f008ebf6b8fda325b306edcea"
    whole = np.bincount(np.concatenate([s.labels for s in (data.train, data.validation, data.test)]))
    for split in (data.train, data.validation, data.test):
        share = np.bincount(split.labels) / len(split) - whole / whole.sum()
        assert np.abs(share).max() < 1.5 / len(split) + 0.005
    rows = {image.tobytes() for image in data.train.images}
    seen = sum(image.tobytes() in rows for image in data.test.images)
    assert seen == 0, f"{seen} test images were trained on"


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), data=st.data())
def test_a_stratified_choice_takes_each_class_in_its_proportion(sizes: list[int], data: st.DataObject) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = data.draw(st.integers(0, len(labels)))
    chosen = stratified(labels, count=count, generator=np.random.default_rng(0))
    assert int(chosen.sum()) == count
    for label, size in enumerate(sizes):
        taken = int(chosen[labels == label].sum())
        assert abs(taken - size * count / len(labels)) < 1, f"{taken} of {size} in class {label}"


def test_the_first_validation_images_are_of_all_classes_even_where_the_data_is_sorted(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path / "pictures", by_class(arrays(colour=False))))
    assert (np.diff(data.train.labels) >= 0).all(), "an image folder is read class by class"
    assert (np.diff(data.validation.labels) < 0).any()


def test_mean_and_deviation_are_those_of_the_training_pixels() -> None:
    data = image_set()
    mean, std = data.mean_std()
    pixels = data.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)
    flat = ImageSet(**(vars(data) | {"train": Split(np.full((4, 8, 8, 1), 7, np.uint8), np.zeros(4, np.int64))}))
    assert flat.mean_std()[1] == (1e-3,)


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_a_folder_and_an_npz_of_the_same_images_are_one_data_set(tmp_path: Path, colour: bool) -> None:
    content = by_class(arrays(colour=colour))
    names = np.array(["class0", "class1", "class2"])
    first = load_data(write_npz(tmp_path / "a.npz", content | {"class_names": names}))
    second = load_data(write_folder(tmp_path / "pictures", content))
    assert (first.kind, second.kind) == ("npz", "folder")
    assert (first.digest, first.shape, first.class_names) == (second.digest, second.shape, second.class_names)
    for part in ("train", "validation", "test"):
        assert same(getattr(first, part), getattr(second, part)), part


@pytest.mark.parametrize("names", [["a\u00a0b", "c", "d"], ["a", "a", "b"], ["", "b", "c"]])
def test_class_names_that_no_bundle_could_carry_are_refused(tmp_path: Path, names: list[str]) -> None:
    content = by_class(arrays(colour=False)) | {"class_names": np.array(names)}
    with pytest.raises(DataError, match="printable class names"):
        load_data(write_npz(tmp_path / "a.npz", content))


def test_a_side_that_no_checkpoint_could_carry_is_refused(tmp_path: Path) -> None:
    content = arrays(colour=False)
    for part in ("train", "test"):
        images = content[f"{part}_images"]
        content[f"{part}_images"] = np.zeros((len(images), 1, 4097, 1), np.uint8)
    with pytest.raises(DataError, match="at most 4096 pixels a side"):
        load_data(write_npz(tmp_path / "a.npz", content))


def test_the_digest_changes_with_any_pixel_or_label(tmp_path: Path) -> None:
    def digest(content: Arrays) -> str:
        return load_data(write_npz(tmp_path / "a.npz", content)).digest

    content = arrays()
    seen = {digest(content), digest(content)}
    assert len(seen) == 1
    for name in content:
        changed = {n: a.copy() for n, a in content.items()}
        changed[name].flat[0] ^= 1
        seen.add(digest(changed))
    assert len(seen) == 5


def edit(**changes: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = arrays() | changes
        np.savez(path, **{n: a for n, a in content.items() if a is not None})

    return write


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def truncated(path: Path) -> None:
    edit()(path)
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path: Path) -> None:
    np.savez_compressed(path, **arrays())
    raw = bytearray(path.read_bytes())
    raw[300] ^= 0xFF
    path.write_bytes(raw)


def claims_a_huge_array(path: Path) -> None:
    edit()(path)
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 64), }"
    with zipfile.ZipFile(path) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, header.ljust(127) + b"\n" if name == "train_images.npy" else part)


NPZ = {
    "missing file": (lambda _: None, "no such file"),
    "a text file": (lambda path: path.write_text("hello"), "damaged or foreign"),
    "an empty file": (lambda path: path.write_bytes(b""), "damaged or foreign"),
    "one array": (one_array, "damaged or foreign"),
    "a folder": (lambda path: path.mkdir(), "damaged or foreign"),
    "truncated": (truncated, "damaged or foreign"),
    "a flipped byte": (flipped, "damaged or foreign"),
    "a huge claim": (claims_a_huge_array, "damaged or foreign"),
    "objects": (edit(train_labels=np.array([{}] * 30, dtype=object)), "damaged or foreign"),
    "no labels": (edit(test_labels=None), "got no test_labels"),
    "float images": (edit(train_images=np.zeros((30, 6, 5, 1))), "uint8"),
    "no channel axis": (edit(train_images=np.zeros((30, 6, 5), np.uint8)), "uint8"),
    "no images": (edit(test_images=np.zeros((0, 6, 5, 1), np.uint8), test_labels=np.zeros(0, int)), "uint8"),
    "float labels": (edit(train_labels=np.zeros(30)), "one integer label"),
    "too few labels": (edit(train_labels=np.arange(29) % 3), "one integer label"),
    "two sizes": (edit(test_images=np.zeros((9, 5, 5, 1), np.uint8)), "one size"),
    "a negative label": (edit(train_labels=np.arange(30) % 3 - 1), "number the classes from 0"),
    "a test label of no class": (edit(test_labels=np.arange(9)), "number the classes from 0"),
    "one class": (edit(train_labels=np.zeros(30, int), test_labels=np.zeros(9, int)), "number the classes from 0"),
    "a label in the billions": (edit(train_labels=np.arange(30) % 3 * 2**40), "number the classes from 0"),
    "an unsigned label": (edit(train_labels=np.full(30, 2**64 - 1, np.uint64)), "number the classes from 0"),
    "few images": (edit(train_images=np.zeros((6, 6, 5, 1), np.uint8), train_labels=np.arange(6) % 3), "at least 10"),
    "one class name": (edit(class_names=np.array("cat")), "class_names"),
    "numbers for names": (edit(class_names=np.arange(3)), "class_names"),
}


@pytest.mark.parametrize(("damage", "words"), NPZ.values(), ids=NPZ)
def test_a_damaged_npz_is_one_clear_sentence(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "data.npz"
    damage(path)
    with pytest.raises(DataError, match=words) as caught:
        load_data(f"npz:{path}")
    assert "\n" not in str(caught.value)


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


FOLDERS = {
    "no test folder": (lambda root: (root / "test").rename(root / "other"), "no train or no test folder"),
    "a class only in test": (lambda root: (root / "test" / "dog").mkdir(), "not in train: dog"),
    "a class without pictures": (lambda root: (root / "train" / "dog").mkdir(), "train/dog"),
    "no test pictures": (remove("test/*/*"), "no picture in test"),
    "no picture": (lambda root: first_picture(root).write_text("hello"), "cannot be read"),
    "a truncated picture": (cut_short, "expected a picture"),
    "another size": (lambda root: Image.new("L", (9, 9)).save(first_picture(root)), "one size, got 5x6 and 9x9"),
    "another size when upright": (
        lambda root: Image.new("L", (5, 6)).save(first_picture(root), exif=turned()),
        "one size, got 5x6 and 6x5",
    ),
}


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(("damage", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_damaged_folder_is_one_clear_sentence(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    spec = write_folder(tmp_path, arrays())
    load_data(spec)
    damage(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["", "digits:x", "npz", "npz:", "cifar", "folder:"])
def test_an_unknown_data_spec_says_what_is_read(spec: str) -> None:
    with pytest.raises(DataError, match="digits, npz:FILE or folder:DIR"):
        load_data(spec)
