"""Data sets by the name that a command line gives them; and those that need no cache: digits, and NumPy's files."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from smart_common.errors import MissingExtraError, shortened
from smart_common.names import printable
from smart_runtime.pictures import SUFFIXES
from smart_train.choices import DATA_SPECS
from smart_train.data.cache import through_cache
from smart_train.data.cifar import cifar10, cifar100
from smart_train.data.folder import folder
from smart_train.data.images import MAX_SIDE, ImageSet, make_image_set, stratified
from smart_train.data.npz_file import read_npz
from smart_train.data.source import ARRAYS, Arrays, Progress, expanded, no_progress
from smart_train.data.stl10 import stl10
from smart_train.data.svhn import svhn
from smart_train.errors import DataError

_log = logging.getLogger(__name__)

_TEST_DIGITS = 360  # a fifth of the 1,797 digits
_DIGITS_SEED = 1797
_RELEASES = {"cifar10": cifar10, "cifar100": cifar100, "svhn": svhn, "stl10": stl10}

NAMED = ("digits", *_RELEASES)
"""Sets that a name alone tells."""


def digits() -> ImageSet:
    """Return scikit-learn's handwritten digits: 1,797 grey 8x8 images of 17 levels.

    They are the test part of UCI's "Optical Recognition of Handwritten Digits".
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("the digits need scikit-learn; pip install 'smart-edge[train]'") from error
    bundle = load_digits()
    images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bundle.target.astype(np.int64)
    test = stratified(labels, count=_TEST_DIGITS, generator=np.random.default_rng(_DIGITS_SEED))
    arrays = Arrays(images[~test], labels[~test], images[test], labels[test])
    return make_image_set(arrays, kind="digits", where="scikit-learn's digits")


def npz(where: str) -> ImageSet:
    """Read a .npz file: ``train_images``, ``test_images`` (uint8 NHWC), ``train_labels``, ``test_labels`` (integers).

    An optional array ``class_names`` of strings names the classes. Raises DataError.
    """
    found = read_npz(where, required=ARRAYS, optional=("class_names",))
    where = shortened(where)
    names = found.pop("class_names", None)
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise DataError(
            f"expected class_names in {where} as strings (classes,), got {names.dtype} of shape {names.shape}; "
            f"leave them out or save a list of strings"
        )
    class_names = None if names is None else tuple(map(str, names))
    arrays = Arrays(
        found["train_images"], found["train_labels"], found["test_images"], found["test_labels"], class_names
    )
    return make_image_set(arrays, kind="npz", where=where)


def data_spec(data: str | os.PathLike[str]) -> str:
    """Return what names ``data``: itself, or for a path ``folder:DIR`` or ``npz:FILE``."""
    if isinstance(data, str):
        return data
    return f"{'folder' if Path(data).is_dir() else 'npz'}:{os.fspath(data)}"


def wanted_size(data: str, *, input_shape: Sequence[int]) -> tuple[int, int] | None:
    """Return as what ``image_size`` a network of ``input_shape`` (channels, height, width) wants ``data``.

    Pictures of a folder are scaled to it; all other data has a size of its own.
    """
    _, height, width = input_shape
    return (height, width) if data.startswith("folder:") else None


def load_data(
    spec: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] = "data",
    cache_dir: str | os.PathLike[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    max_broken: int = 0,
    progress: Progress = no_progress,
) -> ImageSet:
    """Read the data set that ``spec`` names. Nothing is downloaded.

    What was done beside reading it (``notes`` of the set), and which files of a folder are not read, is logged as a
    warning.

    Args:
        spec: ``digits``, ``cifar10``, ``cifar100``, ``svhn``, ``stl10``, ``npz:FILE`` or ``folder:DIR``;
            a path is one of the last two.
        data_dir: where the published sets lie, as folders or as the archives that they come in.
        cache_dir: keeps what was read, so that it is mapped into memory the next time; None for no cache. Digits and
            npz files are not kept: they are as fast to read as a cache is.
        image_size: (height, width), or one number for both: every picture of an image folder is scaled so that it just
            covers that, and its middle is cut out. None where all of them have one size already.
        max_broken: leave out up to so many pictures of an image folder that cannot be read.
        progress: shows how far the reading of pictures, or of an archive, is.

    Raises:
        DataError: if it is missing or damaged, with what was expected, a ``~`` stands for no home directory, or
            ``image_size`` is given for what is no image folder or is out of range.
        MissingExtraError: if a library that reads it is not installed.

    Example:
        ``load_data("cifar10", data_dir="~/data", cache_dir=default_cache_dir())``
    """
    spec = data_spec(spec)
    kind, colon, where = spec.partition(":")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and not all(1 <= side <= MAX_SIDE for side in size):
        raise DataError(f"expected an image size of 1 to {MAX_SIDE} pixels a side, got {size[0]}x{size[1]}")
    if size is not None and not spec.startswith("folder:"):
        raise DataError(f"an image size is for folder:DIR, and the images of {shortened(spec)} have one already")
    if spec == "digits":
        return digits()
    if kind == "npz" and where:
        return npz(where)
    if kind == "folder" and where:
        source = folder(where, size=size, max_broken=max_broken)
    elif kind in _RELEASES and not colon:
        source = _RELEASES[kind](expanded(data_dir))
    else:
        raise DataError(f"unknown data {spec!a:.100}; there are {DATA_SPECS}")
    read = partial(source.read, progress)

    def build(arrays: Arrays) -> ImageSet:
        found = arrays.train_images.shape[1:3]
        if arrays.left_out > max_broken or (size is not None and found != size):  # from the cache
            raise DataError("these arrays were read in another way")
        return make_image_set(arrays, kind=source.kind, where=source.where)

    if cache_dir is None:
        images = build(read())
    else:
        images = through_cache(source, cache_dir=expanded(cache_dir), read=read, build=build)
    if source.ignored:
        _log.warning(
            "note: not read in %s: %s; %s are read", shortened(source.where), source.ignored, ", ".join(SUFFIXES)
        )
    for note in images.notes:
        _log.warning("note: %s", printable(note))
    return images
