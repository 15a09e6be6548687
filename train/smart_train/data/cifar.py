"""CIFAR-10 and CIFAR-100: the archives "for Python" of https://www.cs.toronto.edu/~kriz/cifar.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smart_train.data.images import Labels, Pixels
from smart_train.data.pickles import PickleError, plain_pickle
from smart_train.data.release import Files, Release
from smart_train.data.source import Arrays, Source

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SIDE = 32
_ARCHIVE_BYTES = 2**29  # either unpacks to 186 MB
_META_BYTES = 2**20


@dataclass(frozen=True)
class _Cifar:
    """What one of the two calls its files and the entries of their dictionaries."""

    release: Release
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    meta: str
    class_names: str


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR10 = _Cifar(
    Release(
        title="the Python version of CIFAR-10",
        page=_PAGE,
        files=dict.fromkeys((*_BATCHES, "test_batch"), 2**26) | {"batches.meta": _META_BYTES},  # 31 MB each
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        archive_bytes=_ARCHIVE_BYTES,
    ),
    train=_BATCHES,
    test=("test_batch",),
    labels="labels",
    meta="batches.meta",
    class_names="label_names",
)
_CIFAR100 = _Cifar(
    Release(
        title="the Python version of CIFAR-100",
        page=_PAGE,
        files={"train": 2**28, "test": 2**26, "meta": _META_BYTES},  # 155 MB and 31 MB
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        archive_bytes=_ARCHIVE_BYTES,
    ),
    train=("train",),
    test=("test",),
    labels="fine_labels",
    meta="meta",
    class_names="fine_label_names",
)


def cifar10(data_dir: Path) -> Source:
    """Find CIFAR-10: 60,000 RGB images of 32x32, 10 classes; raises as :meth:`Release.find` does."""
    return _CIFAR10.release.find(data_dir, kind="cifar10", parse=lambda files: _parse(files, _CIFAR10))


def cifar100(data_dir: Path) -> Source:
    """Find CIFAR-100 with its 100 fine classes: 60,000 RGB images of 32x32; raises as :meth:`Release.find` does."""
    return _CIFAR100.release.find(data_dir, kind="cifar100", parse=lambda files: _parse(files, _CIFAR100))


def _parse(files: Files, cifar: _Cifar) -> Arrays:
    names = _dictionary(files, cifar.meta).get(cifar.class_names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise files.damaged(cifar.meta, f"no list of strings {cifar.class_names}")
    train_images, train_labels = _part(files, cifar.train, key=cifar.labels, classes=len(names))
    test_images, test_labels = _part(files, cifar.test, key=cifar.labels, classes=len(names))
    return Arrays(train_images, train_labels, test_images, test_labels, tuple(names))


def _part(files: Files, batches: Sequence[str], *, key: str, classes: int) -> tuple[Pixels, Labels]:
    images, labels = [], []
    for name in batches:
        batch = _dictionary(files, name)
        data, numbers = batch.get("data"), batch.get(key)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * _SIDE * _SIDE:
            raise files.damaged(name, f"no array data of (N, {3 * _SIDE * _SIDE}) uint8")
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise files.damaged(name, f"no list of whole numbers {key}")
        # A row is the red plane, then the green, then the blue one.
        images.append(np.ascontiguousarray(data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)))
        values = np.array(numbers, dtype=np.int64)
        labels.append(files.labels(name, values, images=len(data), first=0, classes=classes))
    return np.concatenate(images), np.concatenate(labels)


def _dictionary(files: Files, name: str) -> dict[str, object]:
    with files.content(name) as raw:
        try:
            return plain_pickle(raw)
        except PickleError as error:
            raise files.damaged(name, str(error)) from error
