"""Data sets by the name that a command line gives them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from smart_train.choices import DATA_SPECS
from smart_train.data.cache import through_cache
from smart_train.data.cifar import cifar10, cifar100
from smart_train.data.digits import digits
from smart_train.data.folder import folder
from smart_train.data.images import ImageSet, make_image_set
from smart_train.data.npz import npz
from smart_train.data.source import Arrays, Progress, expanded, no_progress
from smart_train.data.stl10 import stl10
from smart_train.data.svhn import svhn
from smart_train.errors import DataError

_RELEASES = {"cifar10": cifar10, "cifar100": cifar100, "svhn": svhn, "stl10": stl10}

NAMED = ("digits", *_RELEASES)
"""Sets that a name alone tells."""


def data_spec(data: str | os.PathLike[str]) -> str:
    """Return what names ``data``: itself, or for a path ``folder:DIR`` or ``npz:FILE``."""
    if isinstance(data, str):
        return data
    return f"{'folder' if Path(data).is_dir() else 'npz'}:{os.fspath(data)}"


def load_data(
    spec: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] = "data",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> ImageSet:
    """Read the data set that ``spec`` names. Nothing is downloaded.

    Args:
        spec: ``digits``, ``cifar10``, ``cifar100``, ``svhn``, ``stl10``, ``npz:FILE`` or ``folder:DIR``;
            a path is one of the last two.
        data_dir: where the published sets lie, as folders or as the archives that they come in.
        cache_dir: keeps what was read, so that it is mapped into memory the next time; None for no cache. Digits and
            npz files are not kept: they are as fast to read as a cache is.
        progress: shows how far the reading of pictures, or of an archive, is.

    Raises:
        DataError: if it is missing or damaged, with what was expected, or a ``~`` stands for no home directory.
        MissingExtraError: if a library that reads it is not installed.

    Example:
        ``load_data("cifar10", data_dir="~/data", cache_dir=default_cache_dir())``
    """
    spec = data_spec(spec)
    kind, colon, where = spec.partition(":")
    if spec == "digits":
        return digits()
    if kind == "npz" and where:
        return npz(where)
    if kind == "folder" and where:
        source = folder(where)
    elif kind in _RELEASES and not colon:
        source = _RELEASES[kind](expanded(data_dir))
    else:
        raise DataError(f"unknown data {spec!a:.100}; there are {DATA_SPECS}")
    read = partial(source.read, progress)

    def build(arrays: Arrays) -> ImageSet:
        return make_image_set(kind=source.kind, where=source.where, **vars(arrays))

    if cache_dir is None:
        return build(read())
    return through_cache(source, cache_dir=expanded(cache_dir), read=read, build=build)
