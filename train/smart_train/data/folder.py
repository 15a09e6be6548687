"""``folder:DIR``: pictures sorted into folders by class, with or without parts, or laid out as Tiny-ImageNet is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smart_common.errors import MissingExtraError, few, shortened
from smart_runtime.pictures import SUFFIXES, is_picture
from smart_train.data.images import Labels, stratified
from smart_train.data.pictures import read_pictures
from smart_train.data.source import Arrays, Progress, Source, expanded
from smart_train.errors import DataError

TEST_SEED = 20230205
"""Fixed, so that the test images of a folder without a test part are the same in every command."""

_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"

_Labelled = list[tuple[Path, int]]


def folder(where: str, *, size: tuple[int, int] | None = None, max_broken: int = 0) -> Source:
    """Find the pictures of an image folder: ``train/CLASS/picture`` and ``test/CLASS/picture``.

    Classes are in alphabetical order. As in torchvision's ImageFolder, a class has all pictures below its folder; what
    is hidden (``.ipynb_checkpoints``, ``._0.png``, ``__MACOSX``) is left out. Where there is no ``test``, or none with
    folders of classes (in contests its pictures have no labels), ``val`` is the test part. Tiny-ImageNet is read as it
    is published: ``train/CLASS/images/picture``, and as test part ``val/images`` with the classes of
    ``val/val_annotations.txt``, since pictures in its own ``test`` have no labels. Where classes lie directly in the
    folder, a fifth of the pictures is the test part, every class in its proportion.

    Pictures are read as grey where every one of them is grey, else as RGB.

    Args:
        where: the folder.
        size: height and width that every picture is scaled and cut to; None where all have the same.
        max_broken: how many pictures that cannot be read are left out.

    Raises:
        DataError: if a part or the training pictures of a class are missing; on reading, as `read_pictures` does, and
            if ``max_broken`` leaves none of a part or class.
        MissingExtraError: if Pillow is not installed.
    """
    try:
        import PIL  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("image folders need Pillow; pip install 'smart-edge[image]'") from error
    root = expanded(where)  # the shell leaves ~ alone behind a colon
    train_part, test_part = _parts(root, where)
    annotations = root / "val" / "val_annotations.txt"
    tiny = annotations.is_file() and (root / "val" / "images").is_dir()
    classes = _folders(train_part)
    if len(classes) < 2:
        raise DataError(
            f"expected 2 or more classes in {shortened(str(train_part))}, got {len(classes)}; sort pictures by class"
        )
    ignored: Counter[str] = Counter()
    train = _by_class(train_part, classes, ignored)
    filled = {label for _, label in train}
    empty = [str((train_part / name).relative_to(root)) for i, name in enumerate(classes) if i not in filled]
    notes: tuple[str, ...] = ()
    if tiny:
        test = _annotated(annotations, classes)
        ignored.clear()  # the boxes of Tiny-ImageNet's objects
    elif test_part is not None:
        if test_part.name == "val" and (root / "test").is_dir():
            notes = ("pictures in test are in no folders of classes, so val is the test part",)
        if not _folders(test_part):
            raise DataError(
                f"no folders of classes in {test_part.name} of {shortened(where)}; sort its pictures by class, or give "
                f"folder:{shortened(where)}/train to have a fifth of those held out for test"
            )
        test = _by_class(test_part, classes, ignored)
        empty = [*([] if test else [test_part.name]), *empty]
        strangers = sorted(set(_folders(test_part)) - set(classes))
        if strangers:
            raise DataError(
                f"classes of {test_part.name} in {shortened(where)} are not in train: {few(strangers)}; every class "
                "needs training pictures"
            )
    else:
        train, test = _split(train)
        notes = (
            f"there are no folders train and test: {len(test)} of {len(train) + len(test)} pictures, every class in "
            f"its proportion, are held out for test (chosen at random by the fixed seed {TEST_SEED})",
        )
    if empty:
        raise DataError(f"no picture in {few(empty)} of {shortened(where)}; {', '.join(SUFFIXES)} are read")
    if not test:
        raise DataError(f"one picture a class in {shortened(where)}, which leaves none for test; add some")
    paths = [path for path, _ in train + test]

    def read(progress: Progress) -> Arrays:
        images, kept = read_pictures(paths, progress=progress, size=size, max_broken=max_broken)
        labels = np.array([label for _, label in train + test], dtype=np.int64)[kept]
        cut, left_out = sum(i < len(train) for i in kept), len(paths) - len(kept)
        gone = [f"training pictures of {classes[label]}" for label in np.setdiff1d(range(len(classes)), labels[:cut])]
        gone += ["test pictures"] if cut == len(kept) else []
        if gone:
            raise DataError(
                f"all {few(gone)} in {shortened(where)} are broken, and none is left without them; replace some"
            )
        said = (f"broken pictures left out: {left_out}",) if left_out else ()
        return Arrays(
            *(images[:cut], labels[:cut], images[cut:], labels[cut:]),
            class_names=tuple(classes),
            left_out=left_out,
            notes=(*notes, *said),
        )

    return Source(
        kind="folder",
        where=where,
        root=root,
        files=(*paths, *([annotations] if tiny else [])),
        read=read,
        decoder=f"Pillow {PIL.__version__}",  # another JPEG decoder may round in another way
        variant="" if size is None else f"{size[1]}x{size[0]}",
        ignored=", ".join(f"{count} {kind}" for kind, count in ignored.most_common(10)),
    )


def _parts(root: Path, where: str) -> tuple[Path, Path | None]:
    """Return the folders of training and test pictures; ``root`` and None where it has the classes themselves."""
    parts = [root / part for part in ("test", "val") if (root / part).is_dir()]
    test = next((part for part in parts if _folders(part)), parts[0] if parts else None)
    if (root / "train").is_dir() and test is not None:
        return root / "train", test
    if test is not None or _folders(root / "train") or not _folders(root):  # one part alone, or nothing at all
        raise DataError(
            f"no folders train and test in {shortened(where)}; put pictures there as train/CLASS/*.png and "
            f"test/CLASS/*.png, or as CLASS/*.png to have a fifth held out for test (Tiny-ImageNet is at {_TINY})"
        )
    return root, None


def _folders(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _pictures(directory: Path, ignored: Counter[str]) -> list[Path]:
    """List the files below ``directory`` that are called as pictures; count the others by suffix in ``ignored``.

    A folder that is called so and has no pictures in it is listed too, as a picture that cannot be read.
    """
    found, odd = [], []
    seen = set()  # a link may lead back up
    for place, folders, files in os.walk(directory, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        odd += [Path(place, name) for name in folders if Path(name).suffix.lower() in SUFFIXES and not _is_hidden(name)]
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES and not _is_hidden(name):
                found.append(Path(place, name))
            elif suffix in SUFFIXES:
                ignored["hidden"] += 1
            elif not _is_hidden(name):
                ignored[shortened(suffix) or "without a suffix"] += 1
        folders[:] = [name for name in folders if not _is_hidden(name)]
    if odd:
        filled = {folder for path in found for folder in path.parents}
        found += [path for path in odd if path not in filled]
    return sorted(found, key=lambda path: path.relative_to(directory).parts)


def _by_class(part: Path, classes: Sequence[str], ignored: Counter[str]) -> _Labelled:
    loose = sum(is_picture(path, within=part) for path in part.iterdir())
    if loose:
        ignored["outside of the folders of classes"] += loose
    return [(path, label) for label, name in enumerate(classes) for path in _pictures(part / name, ignored)]


def _split(pictures: _Labelled) -> tuple[_Labelled, _Labelled]:
    """Return training and test pictures: a fifth for test, of each class one or more where it has two or more."""
    labels: Labels = np.array([label for _, label in pictures], dtype=np.int64)
    _, sizes = np.unique(labels, return_counts=True)
    count = min(max(len(labels) // 5, int((sizes > 1).sum())), len(labels) - len(sizes))
    chosen = stratified(labels, count=count, generator=np.random.default_rng(TEST_SEED), leave_one=True)
    return (
        [one for one, is_test in zip(pictures, chosen, strict=True) if not is_test],
        [one for one, is_test in zip(pictures, chosen, strict=True) if is_test],
    )


def _annotated(annotations: Path, classes: Sequence[str]) -> _Labelled:
    """List the pictures beside Tiny-ImageNet's ``val_annotations.txt``: name, class and a box, with tabs between."""
    numbers = {name: label for label, name in enumerate(classes)}
    pictures = {path.name: path for path in _pictures(annotations.parent / "images", Counter())}
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
