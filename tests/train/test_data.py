from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.splits import why_not_nearest
from smart_train.data.images import ImageSet, Split, stratified
from smart_train.data.load import load_data
from smart_train.errors import ConfigError, DataError
from train.data_files import Arrays, arrays, by_class, write_npz
from train.networks import image_set


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
    assert not why_not_nearest(np.bincount(labels[chosen], minlength=len(sizes)).tolist(), sizes)


def test_mean_and_deviation_are_those_of_the_training_pixels() -> None:
    data = image_set()
    mean, std = data.mean_std()
    pixels = data.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)
    flat = ImageSet(**(vars(data) | {"train": Split(np.full((4, 8, 8, 1), 7, np.uint8), np.zeros(4, np.int64))}))
    assert flat.mean_std()[1] == (1e-3,)


@pytest.mark.parametrize("names", [["a\u202eb", "c", "d"], ["a", "a", "b"], ["", "b", "c"], ["a\nb", "c", "d"]])
def test_class_names_that_no_bundle_could_carry_are_refused(tmp_path: Path, names: list[str]) -> None:
    content = by_class(arrays()) | {"class_names": np.array(names)}
    with pytest.raises(DataError, match="printable class names"):
        load_data(write_npz(tmp_path / "a.npz", content))


def test_a_side_that_no_checkpoint_could_carry_is_refused(tmp_path: Path) -> None:
    content = arrays()
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
    "missing file": (lambda _: None, "^no file .*npz; give a .npz with train_images"),
    "a text file": (lambda path: path.write_text("hello"), "is damaged or no .npz"),
    "an empty file": (lambda path: path.write_bytes(b""), "is damaged or no .npz"),
    "one array": (one_array, "is damaged or no .npz"),
    "a folder": (lambda path: path.mkdir(), "is damaged or no .npz"),
    "truncated": (truncated, "is damaged or no .npz"),
    "a flipped byte": (flipped, "is damaged or no .npz"),
    "a huge claim": (claims_a_huge_array, "is damaged or no .npz"),
    "objects": (edit(train_labels=np.array([{}] * 30, dtype=object)), "is damaged or no .npz"),
    "no labels": (edit(test_labels=None), "^no array test_labels in"),
    "float images": (edit(train_images=np.zeros((30, 6, 5, 1))), "uint8"),
    "no height and width": (edit(train_images=np.zeros((30, 30), np.uint8)), "uint8"),
    "no images": (edit(test_images=np.zeros((0, 6, 5, 1), np.uint8), test_labels=np.zeros(0, int)), "uint8"),
    "float labels": (edit(train_labels=np.zeros(30)), "one integer label"),
    "too few labels": (edit(train_labels=np.arange(29) % 3), "one integer label"),
    "two sizes": (edit(test_images=np.zeros((9, 5, 5, 1), np.uint8)), "differ in size"),
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


@pytest.mark.parametrize("spec", ["", "digits:", "digits:x", "npz", "npz:", "cifar", "cifar10:x", "svhn:", "folder:"])
def test_an_unknown_data_spec_says_what_is_read(spec: str) -> None:
    words = f"unknown data {spec!r}; there are digits, cifar10, cifar100, svhn, stl10, npz:FILE or folder:DIR"
    with pytest.raises(DataError, match=f"^{words}$"):
        load_data(spec)


@given(sizes=st.lists(st.integers(2, 30), min_size=2, max_size=5), data=st.data())
def test_a_subset_keeps_proportions_order_and_everything_else(sizes: list[int], data: st.DataObject) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]  # an image's pixel is its number
    whole = ImageSet(**(vars(image_set()) | {"train": Split(images, labels)}))
    count = data.draw(st.integers(len(sizes) * 2, len(labels)))
    part = whole.subset(count)
    numbers = part.train.images.ravel()
    assert len(part.train) == count
    assert (np.diff(numbers.astype(int)) > 0).all(), "each image once, in the old order"
    assert np.array_equal(part.train.labels, labels[numbers])
    assert not why_not_nearest(np.bincount(part.train.labels, minlength=len(sizes)).tolist(), sizes)
    assert np.array_equal(whole.subset(count).train.images, part.train.images), "always the same ones"
    rest = {name: value for name, value in vars(whole).items() if name != "train"}
    assert all(getattr(part, name) is value for name, value in rest.items())


@pytest.mark.parametrize("count", [-1, 0, 1, 10_000])
def test_a_subset_of_an_impossible_size_is_refused(count: int) -> None:
    data = image_set()
    with pytest.raises(ConfigError, match=f"expected from 2 to {len(data.train)} training images.*got {count};"):
        data.subset(count)


def test_a_subset_of_one_class_is_refused() -> None:
    train = Split(np.zeros((100, 8, 8, 1), np.uint8), np.array([0] * 98 + [1, 2]))
    data = ImageSet(**(vars(image_set()) | {"train": train}))
    with pytest.raises(ConfigError, match="2 training images are all of one class"):
        data.subset(2)
    assert np.bincount(data.subset(10).train.labels).tolist() == [8, 1, 1]
