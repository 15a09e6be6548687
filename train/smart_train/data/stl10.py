"""STL-10: the binary files of https://cs.stanford.edu/~acoates/stl10/."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smart_train.data.images import Labels, Pixels
from smart_train.data.release import Files, Release
from smart_train.data.source import Arrays, Source

_SIDE = 96
_IMAGE_BYTES = 3 * _SIDE * _SIDE
_CLASSES = 10
_RELEASE = Release(
    title="STL-10",
    page="https://cs.stanford.edu/~acoates/stl10/",
    files={
        "train_X.bin": 2**28,  # 138 MB
        "train_y.bin": 2**16,
        "test_X.bin": 2**28,  # 221 MB
        "test_y.bin": 2**16,
        "class_names.txt": 2**12,
    },
    folder="stl10_binary",
    archive="stl10_binary.tar.gz",
    archive_bytes=2**32,  # 3.1 GB with the unlabelled images, which are skipped
)


def stl10(data_dir: Path) -> Source:
    """Find STL-10's labelled images: 5,000 for training and 8,000 for test, RGB of 96x96; raises as `Release.find`."""
    return _RELEASE.find(data_dir, kind="stl10", parse=_parse)


def _parse(files: Files) -> Arrays:
    with files.content("class_names.txt") as raw:
        names = tuple(raw.decode("ascii").split())
    if len(names) != _CLASSES:
        raise files.damaged("class_names.txt", f"{len(names)} names instead of {_CLASSES}")
    return Arrays(*_part(files, "train"), *_part(files, "test"), names)


def _part(files: Files, part: str) -> tuple[Pixels, Labels]:
    name = f"{part}_X.bin"
    with files.content(name) as raw:
        if len(raw) % _IMAGE_BYTES:
            raise files.damaged(name, f"{len(raw)} bytes, which is no multiple of {_IMAGE_BYTES}")
        # Plane after plane, and each of them column after column.
        planes = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3, _SIDE, _SIDE)
        images = np.ascontiguousarray(planes.transpose(0, 3, 2, 1))
    name = f"{part}_y.bin"
    with files.content(name) as raw:
        numbers = np.frombuffer(raw, dtype=np.uint8)
    return images, files.labels(name, numbers, images=len(images), first=1, classes=_CLASSES) - 1
