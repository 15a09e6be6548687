"""One in-memory form for every data set, with a validation split from the start."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from smart_common.errors import few, shortened
from smart_common.names import is_name
from smart_train.data.source import Array, Arrays
from smart_train.errors import ConfigError, DataError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_LEAST_SIDE = 8  # pixels; arrays whose last two axes are as long are pictures with their channels first
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
        notes: what was done to the data beside reading it, in sentences; never a file name.
    """

    kind: str
    class_names: tuple[str, ...]
    digest: str
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = ()

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

        Every class keeps its proportion, as `stratified` has it, and the images their order.

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


def checked_split(images: Array, labels: Array, *, part: str, array: str, where: str) -> Split:
    """Return the images and labels of a part of a set in their types; raise DataError where they have another form.

    ``array`` is what the images are called in the file, for the remedy.
    """
    images = images[..., None] if images.ndim == 3 else images  # grey, without an axis for its channel
    planes_first = (
        images.ndim == 4
        and images.shape[1] in {1, 3}
        and min(images.shape[2:]) >= _LEAST_SIDE
        and max(images.shape[2:]) <= 2 * min(images.shape[2:])  # else low arrays of many channels
    )
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape or planes_first:
        raise DataError(
            f"expected {part} images in {where} as uint8 (N, height, width, channels), got {images.dtype} of shape "
            f"{images.shape}{_remedy(images, array, planes_first=planes_first)}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"expected one integer label for each of the {len(images)} {part} images in {where}, got {labels.dtype} of "
            f"shape {labels.shape}; save them as int64 (N,)"
        )
    # Without a copy where they have these types: the arrays may be mapped from a file.
    return Split(images.astype(np.uint8, copy=False), labels.astype(np.int64, copy=False))


def digest_of(*splits: Split) -> str:
    """Return the SHA-256 over all images and labels, hexadecimal."""
    digest = hashlib.sha256()
    for array in (array for split in splits for array in (split.images, split.labels)):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.hexdigest()


def _remedy(images: Array, name: str, *, planes_first: bool) -> str:
    """Return what is wrong with images of another form, and the NumPy expression that mends it."""
    if images.ndim != 4 or 0 in images.shape or images.dtype.kind not in "biuf":
        return "; convert them with NumPy before saving"
    turned = f"{name}.transpose(0, 2, 3, 1)" if planes_first else name
    if images.dtype == np.uint8:
        return f", which is (N, channels, height, width); save {turned}"
    low, high = float(images.min()), float(images.max())
    kind = images.dtype.kind
    if kind == "b" or (kind == "f" and 0 <= low <= high <= 1):
        levels = f"np.rint({turned} * 255).astype(np.uint8)"
    elif 0 <= low <= high <= 255:
        levels = f"np.rint({turned}).astype(np.uint8)" if kind == "f" else f"{turned}.astype(np.uint8)"
    elif kind != "f" and 0 <= low <= high < 2**16:
        levels = f"({turned} // 257).astype(np.uint8)"
    elif np.isfinite([low, high]).all():
        levels = f"np.clip(np.rint(({turned} * std + mean) * 255), 0, 255).astype(np.uint8)"
        return f" from {low:.4g} to {high:.4g}; undo their normalisation by mean and std and save {levels}"
    else:
        return " with values that are not finite; repair them before saving"
    return f" from {low:.4g} to {high:.4g}; save {levels}"


def stratified(
    labels: Labels, *, count: int, generator: np.random.Generator, leave_one: bool = False
) -> npt.NDArray[np.bool_]:
    """Choose ``count`` of ``labels`` with every class as near to its proportion as whole numbers allow: bool (N,).

    Every class gets one where ``count`` allows that. The rest goes by largest remainders, equal ones in random order:
    the squared distances from the proportions are the least that there can be.

    Args:
        labels: integers (N,).
        count: 0 to N.
        generator: chooses among equals. Its stream moves by one permutation a class.
        leave_one: also leave one of each class where ``count`` allows that.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    most = sizes - 1 if leave_one and count <= len(labels) - len(classes) else sizes
    least = np.minimum(most, 1)
    least = least if least.sum() <= count else np.zeros_like(least)
    wanted = sizes * count  # proportions in units of 1/N: whole numbers, so that equals are equal
    take = np.clip(wanted // max(len(labels), 1), least, most)
    # Of a stream of its own, so that it does not change which images of a class are chosen.
    bits = generator.bit_generator.jumped()  # type: ignore[attr-defined]  # all of NumPy's have it but for the base class
    luck = np.random.Generator(bits).random(len(classes))
    missing = count - int(take.sum())
    step, limit = (1, most) if missing > 0 else (-1, least)
    for _ in range(abs(missing)):
        claims = np.where(take == limit, -np.inf, (wanted - take * len(labels)) * step + luck)
        take[claims.argmax()] += step
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label, number in zip(classes, take, strict=True):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:number]] = True
    return chosen


def make_image_set(arrays: Arrays, *, kind: str, where: str) -> ImageSet:
    """Check the arrays and cut the validation split off the training images.

    The validation split has a tenth of the training images, but 256 where that is less than a fifth of them. Each class
    keeps one training image or more, unless all have just one. Grey images may come without the channel axis.

    Args:
        arrays: the data set.
        kind: kept in the set and its checkpoints.
        where: for messages, the file or folder as the user named it.

    Raises:
        DataError: if an array has another form, a label is out of range, or there are too few images.
    """
    where = shortened(where)
    train = checked_split(arrays.train_images, arrays.train_labels, part="training", array="train_images", where=where)
    test = checked_split(arrays.test_images, arrays.test_labels, part="test", array="test_images", where=where)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"training and test images of {where} differ in size, {train.images.shape[1:]} and "
            f"{test.images.shape[1:]}; resize one of them"
        )
    present = np.unique(train.labels)
    classes = int(present[-1]) + 1 if arrays.class_names is None else len(arrays.class_names)
    lowest = min(present[0], test.labels.min())
    highest = max(present[-1], test.labels.max())
    if lowest == 1 and highest == len(present):
        raise DataError(
            f"labels in {where} start at 1, and class 0 would have no images; save train_labels - 1 and test_labels - 1"
        )
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
    if len(set(names)) != classes or not all(map(is_name, names)):
        raise DataError(f"expected different, printable class names in {where}, got {names!a:.200}; rename the classes")
    absent = [names[label] for label in np.setdiff1d(np.arange(classes), present)]
    if absent:
        remedy = "add some"
        if arrays.class_names is None:
            remedy += ", or number the others from 0: np.searchsorted(np.unique(train_labels), train_labels), and so on"
        raise DataError(f"no training image of class {few(absent)} in {where}; {remedy}")
    count = max(len(train) // 10, min(VALIDATION_SAMPLES, len(train) // 5))
    count = min(count, len(train) - classes) or count  # as many as leave each class one, where there are such
    generator = np.random.default_rng(VALIDATION_SEED)
    held = stratified(train.labels, count=count, generator=generator, leave_one=True)
    # In random order: image folders come sorted by class, and a checkpoint's samples are the first validation images.
    order = generator.permutation(np.flatnonzero(held))
    return ImageSet(
        kind=kind,
        class_names=names,
        digest=digest_of(train, test),
        train=Split(train.images[~held], train.labels[~held]),
        validation=Split(train.images[order], train.labels[order]),
        test=test,
        notes=arrays.notes,
    )
