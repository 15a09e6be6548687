"""What users with few pictures a class, and with arrays of their own, reported: each failed before it was mended."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from reference.splits import distance, least_distance
from smart_train.data.images import VALIDATION_SEED, Split, stratified
from smart_train.data.load import load_data

Array = npt.NDArray[Any]


def seed(number: int) -> np.random.Generator:
    return np.random.default_rng(number)


def pictures(count: int, *, side: int = 8, channels: int = 3) -> Array:
    return seed(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def save(path: Path, images: Array, labels: Array, **others: Array) -> str:
    """Train on all, test on every fourth."""
    file = path / "own.npz"
    content: dict[str, Any] = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images[::4],
        "test_labels": labels[::4],
    }
    np.savez(file, **(content | others))
    return f"npz:{file}"


def as_before(labels: Array, *, count: int, generator: np.random.Generator) -> Array:
    """The choice as it was when of equal remainders the first classes' were taken."""
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(labels)
    take = np.floor(shares).astype(int)
    for i in np.argsort(take - shares, kind="stable")[: count - int(take.sum())]:
        take[i] += 1
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label, number in zip(classes, take, strict=True):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:number]] = True
    return chosen


def test_twenty_classes_of_four_images_are_not_validated_on_the_first_sixteen(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(20), 4)
    data = load_data(save(tmp_path, pictures(80), labels))
    held = np.unique(data.validation.labels)
    assert len(held) == len(data.validation) == 16
    assert held.tolist() != list(range(16))
    assert len(np.unique(data.train.labels)) == 20


def test_500_images_of_900_classes_are_not_of_the_last_500_classes() -> None:
    labels = np.repeat(np.arange(900), 3)
    chosen = labels[stratified(labels, count=500, generator=seed(0))]
    assert len(np.unique(chosen)) == 500
    assert 200 < (chosen < 450).sum() < 300
    other = labels[stratified(labels, count=500, generator=seed(1))]
    assert chosen.tolist() != other.tolist(), "the seed decides"


def test_a_rare_class_is_in_every_split_that_has_room_for_it(tmp_path: Path) -> None:
    labels = np.array([0] * 200 + [1] * 2 + [2] * 1)
    data = load_data(save(tmp_path, pictures(203), labels, test_labels=labels[::4]))
    assert np.bincount(data.validation.labels, minlength=3).tolist() == [39, 1, 0]
    assert np.bincount(data.train.labels, minlength=3).tolist() == [161, 1, 1]
    assert np.bincount(data.subset(4).train.labels).tolist() == [2, 1, 1]


def test_a_hundred_classes_of_few_images_are_all_trained_on(tmp_path: Path) -> None:
    labels = np.concatenate([np.arange(100), np.arange(4)])
    data = load_data(save(tmp_path, pictures(104), labels))
    assert len(np.unique(data.train.labels)) == 100
    assert sorted(data.validation.labels) == [0, 1, 2, 3]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    leave_one=st.booleans(),
    number=st.integers(0, 3),
    data=st.data(),
)
def test_no_choice_is_nearer_to_the_proportions(
    sizes: list[int], leave_one: bool, number: int, data: st.DataObject
) -> None:
    labels = seed(number).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = data.draw(st.integers(1, len(labels)))
    chosen = stratified(labels, count=count, generator=seed(number), leave_one=leave_one)
    taken = np.bincount(labels[chosen], minlength=len(sizes)).tolist()
    assert sum(taken) == count
    if count >= len(sizes):
        assert leave_one or min(taken) >= 1
    if leave_one and count <= len(labels) - len(sizes):
        assert all(number < size for number, size in zip(taken, sizes, strict=True))
    assert distance(taken, sizes) == least_distance(sizes, count=count, leave_one=leave_one)


@given(sizes=st.lists(st.integers(20, 60), min_size=2, max_size=8, unique=True), number=st.integers(0, 9))
def test_a_split_without_ties_is_what_it_was(sizes: list[int], number: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = len(labels) // 3
    remainders = [size * count % len(labels) for size in sizes]
    now, before = seed(number), seed(number)
    chosen = stratified(labels, count=count, generator=now, leave_one=True)
    if len(set(remainders)) == len(remainders):
        assert np.array_equal(chosen, as_before(labels, count=count, generator=before))
        assert now.random() == before.random(), "what is drawn afterwards is the same too"


def fingerprint(split: Split) -> str:
    return hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()[:16]


def test_the_splits_of_digits_and_of_cifar_are_what_they_were() -> None:
    digits = load_data("digits")
    found = [fingerprint(split) for split in (digits.train, digits.validation, digits.test, digits.subset(300).train)]
    assert found == ["5617f65c12471dfb", "f463b5b47f000cf6", "73492bf4327333c5", "45e9270043789c1f"]
    cifar = seed(0).permutation(np.repeat(np.arange(10), 500))
    for count in (250, 500, 1000):
        now = stratified(cifar, count=count, generator=seed(VALIDATION_SEED), leave_one=True)
        assert np.array_equal(now, as_before(cifar, count=count, generator=seed(VALIDATION_SEED)))
