"""One in-memory form for every data set, with a validation split from the start."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from smart_train.data.source import Array, Arrays
from smart_train.errors import ConfigError, DataError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

MAX_SIDE = 4096  # pixels; no edge classifier takes more, and a checkpoint that claims more is refused
VALIDATION_SAMPLES = 256  # a checkpoint carries this many validation images
VALIDATION_SEED = 20230203  # fixed, so that a split never depends on a training's seed
SUBSET_SEED = 20230204  # fixed too: a subset is the same in every training


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, H, W, C) and labels int64 (N,)."""

    images: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set: training images to learn from, validation images to choose by, test images to report on.

    Attributes:
        kind: ``digits``, ``cifar10``, ``npz``, ``folder`` and so on; a file name or path is never kept.
        class_names: one name a class, in the order of the labels.
        digest: SHA-256 over all images and labels, hexadecimal.
    """

    kind: str
    class_names: tuple[str, ...]
    digest: str
    train: Split
    validation: Split
    test: Split

    def __repr__(self) -> str:
        channels, height, width = self.shape
        return (
            f"ImageSet({self.kind}, {len(self.train)} + {len(self.validation)} + {len(self.test)} images for training, "
            f"validation and test, {width}x{height}x{channels}, {len(self.class_names)} classes)"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width

    def subset(self, train: int) -> ImageSet:
        """Return the set with ``train`` of its training images, always the same ones, and all else as it is.

        Every class keeps its proportion (largest remainders) and the images their order.

        Raises:
            ConfigError: if there are fewer, or they are all of one class.
        """
        if not 2 <= train <= len(self.train):
            raise ConfigError(
                f"expected from 2 to {len(self.train)} training images, which is how many there are, got {train}; "
                f"leave the number out for all"
            )
        chosen = stratified(self.train.labels, count=train, generator=np.random.default_rng(SUBSET_SEED))
        labels = self.train.labels[chosen]
        if len(np.unique(labels)) < 2:
            raise ConfigError(f"{train} training images are all of one class; take more, up to {len(self.train)}")
        return replace(self, train=Split(self.train.images[chosen], labels))

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel of the training images, in units of [0, 1]."""
        levels = np.arange(256) / 255
        means, stds = [], []
        for channel in np.moveaxis(self.train.images, -1, 0):  # counts of each level: no float copy of the images
            shares = sum(np.bincount(image.ravel(), minlength=256) for image in channel) / channel.size
            mean = float(shares @ levels)
            means.append(mean)
            # A constant channel must not divide by zero.
            stds.append(max(float(shares @ (levels - mean) ** 2) ** 0.5, 1e-3))
        return tuple(means), tuple(stds)


def _check(images: Array, labels: Array, *, name: str, where: str) -> Split:
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"expected {name} images in {where} as uint8 (N, height, width, channels), got {images.dtype} of shape "
            f"{images.shape}; convert them with numpy before saving"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"expected one integer label for each of the {len(images)} {name} images in {where}, got {labels.dtype} of "
            f"shape {labels.shape}; save them as int64 (N,)"
        )
    # Without a copy where they have these types: the arrays may be mapped from a file.
    return Split(images.astype(np.uint8, copy=False), labels.astype(np.int64, copy=False))


def stratified(labels: Labels, *, count: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Choose ``count`` of ``labels`` with every class in its proportion (largest remainders): bool (N,)."""
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(labels)
    take = np.floor(shares).astype(int)
    for i in np.argsort(take - shares, kind="stable")[: count - int(take.sum())]:
        take[i] += 1
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label, number in zip(classes, take, strict=True):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:number]] = True
    return chosen


def make_image_set(arrays: Arrays, *, kind: str, where: str) -> ImageSet:
    """Check the arrays and cut the validation split off the training images.

    The validation split has a tenth of the training images, but 256 where that is less than a fifth of them.

    Args:
        arrays: the data set.
        kind: kept in the set and its checkpoints.
        where: for messages, the file or folder as the user named it.

    Raises:
        DataError: if an array has another form, a label is out of range, or there are too few images.
    """
    train = _check(arrays.train_images, arrays.train_labels, name="training", where=where)
    test = _check(arrays.test_images, arrays.test_labels, name="test", where=where)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"training and test images of {where} differ in size, {train.images.shape[1:]} and "
            f"{test.images.shape[1:]}; resize one of them"
        )
    classes = int(train.labels.max()) + 1 if arrays.class_names is None else len(arrays.class_names)
    lowest = min(train.labels.min(), test.labels.min())
    highest = max(train.labels.max(), test.labels.max())
    if lowest < 0 or highest >= classes or not 2 <= classes <= len(train):
        raise DataError(
            f"expected labels from 0 to {classes - 1}, of 2 or more classes but at most the {len(train)} training "
            f"images, in {where}, got {lowest} to {highest}; number the classes from 0"
        )
    if len(train) < 10:
        raise DataError(
            f"expected at least 10 training images in {where}, got {len(train)}; a validation split needs them"
        )
    if max(train.images.shape[1:3]) > MAX_SIDE:
        raise DataError(
            f"expected images of at most {MAX_SIDE} pixels a side in {where}, got {train.images.shape[1:3]}; scale them"
        )
    names = arrays.class_names or tuple(map(str, range(classes)))
    if len(set(names)) != classes or not all(name and name.isprintable() for name in names):
        raise DataError(f"expected different, printable class names in {where}, got {names!a:.200}; rename the classes")
    digest = hashlib.sha256()
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    count = max(len(train) // 10, min(VALIDATION_SAMPLES, len(train) // 5))
    generator = np.random.default_rng(VALIDATION_SEED)
    held = stratified(train.labels, count=count, generator=generator)
    # In random order: image folders come sorted by class, and a checkpoint's samples are the first validation images.
    order = generator.permutation(np.flatnonzero(held))
    return ImageSet(
        kind=kind,
        class_names=names,
        digest=digest.hexdigest(),
        train=Split(train.images[~held], train.labels[~held]),
        validation=Split(train.images[order], train.labels[order]),
        test=test,
    )
