"""``folder:DIR``: pictures sorted into folders by class, or laid out as Tiny-ImageNet is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smart_common.errors import MissingExtraError
from smart_train.data.images import Labels
from smart_train.data.pictures import read_pictures
from smart_train.data.source import Arrays, Progress, Source, expanded
from smart_train.errors import DataError

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}
_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"

_Labelled = list[tuple[Path, int]]


def folder(where: str) -> Source:
    """Find the pictures of an image folder: ``train/CLASS/picture`` and ``test/CLASS/picture``.

    Classes are in alphabetical order, and so are the pictures of each. Where there is no ``test``, ``val`` is the test
    part. Tiny-ImageNet is read as it is published: ``train/CLASS/images/picture``, and as test part ``val/images``
    with the classes of ``val/val_annotations.txt``, since the pictures in its own ``test`` have no labels.

    Pictures are read as grey where every one of them is grey, else as RGB, and must all have one size.

    Raises:
        DataError: if a part or the training pictures of a class are missing; on reading, as `read_pictures` does.
        MissingExtraError: if Pillow is not installed.
    """
    try:
        import PIL  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("image folders need Pillow; pip install 'smart-edge[image]'") from error
    root = expanded(where)  # the shell leaves ~ alone behind a colon
    annotations = root / "val" / "val_annotations.txt"
    tiny = annotations.is_file() and (root / "val" / "images").is_dir()
    test_part = "test" if (root / "test").is_dir() else "val"
    if not (root / "train").is_dir() or not (root / test_part).is_dir():
        raise DataError(
            f"no folders train and test in {where}; put pictures there as train/CLASS/*.png and test/CLASS/*.png "
            f"(Tiny-ImageNet is at {_TINY})"
        )
    classes = _folders(root / "train")
    if len(classes) < 2:
        raise DataError(
            f"expected 2 or more classes in {where}, got {len(classes)} in train; sort the pictures by class"
        )
    strangers = [] if tiny else sorted(set(_folders(root / test_part)) - set(classes))
    if strangers:
        raise DataError(
            f"classes of {test_part} in {where} are not in train: {', '.join(strangers)}; every class needs training "
            "pictures"
        )
    train = _by_class(root / "train", classes)
    test = _annotated(annotations, classes) if tiny else _by_class(root / test_part, classes)
    filled = {label for _, label in train}
    empty = [] if test else [test_part]
    empty += [f"train/{name}" for i, name in enumerate(classes) if i not in filled]
    if empty:
        raise DataError(f"no picture in {' and '.join(empty)} of {where}; PNG, JPEG, BMP, WebP and PNM are read")

    def read(progress: Progress) -> Arrays:
        images = read_pictures([path for path, _ in train + test], progress=progress)
        return Arrays(images[: len(train)], _labels(train), images[len(train) :], _labels(test), tuple(classes))

    return Source(
        kind="folder",
        where=where,
        root=root,
        files=(*(path for path, _ in train + test), *([annotations] if tiny else [])),
        read=read,
        decoder=f"Pillow {PIL.__version__}",  # another JPEG decoder may round in another way
    )


def _folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def _pictures(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = (path for path in directory.iterdir() if path.suffix.lower() in _PICTURES)
    return sorted(found, key=lambda path: path.name)


def _by_class(part: Path, classes: Sequence[str]) -> _Labelled:
    """List the pictures of each class, which lie in its folder or, as Tiny-ImageNet has it, in ``images`` there."""
    return [
        (path, label)
        for label, name in enumerate(classes)
        for path in _pictures(part / name) or _pictures(part / name / "images")
    ]


def _annotated(annotations: Path, classes: Sequence[str]) -> _Labelled:
    """List the pictures beside Tiny-ImageNet's ``val_annotations.txt``: name, class and a box, with tabs between."""
    numbers = {name: label for label, name in enumerate(classes)}
    pictures = {path.name: path for path in _pictures(annotations.parent / "images")}
    labels: dict[str, int] = {}
    try:
        for line in annotations.read_text(encoding="utf-8").splitlines():
            name, wnid = line.split("\t")[:2]
            labels[name] = numbers[wnid]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{annotations} has a line that is not a picture's name, a tab and a class of train; get Tiny-ImageNet "
            f"again from {_TINY}"
        ) from error
    odd = sorted(labels.keys() ^ pictures.keys())
    if odd:
        raise DataError(
            f"the lines of {annotations} and the pictures of val/images do not match: {len(odd)} without the other, "
            f"first {odd[0]!a}; get Tiny-ImageNet again from {_TINY}"
        )
    return [(path, labels[name]) for name, path in pictures.items()]


def _labels(pictures: _Labelled) -> Labels:
    return np.array([label for _, label in pictures], dtype=np.int64)
