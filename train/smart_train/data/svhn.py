"""SVHN, cropped digits (format 2): the .mat files of http://ufldl.stanford.edu/housenumbers/."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from smart_common.errors import MissingExtraError
from smart_train.data.images import Labels, Pixels
from smart_train.data.release import Files, Release
from smart_train.data.source import Arrays, Source

_SIDE = 32
_IMAGE_BYTES = 3 * _SIDE * _SIDE
_NUMBERS = {"double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
_RELEASE = Release(
    title="SVHN (cropped digits)",
    page="http://ufldl.stanford.edu/housenumbers/",
    files={"train_32x32.mat": 2**29, "test_32x32.mat": 2**28},  # 182 MB and 64 MB
)


def svhn(data_dir: Path) -> Source:
    """Find SVHN without its extra images: 73,257 for training, 26,032 for test, 32x32; raises as `Release.find`."""
    return _RELEASE.find(data_dir, kind="svhn", parse=_parse)


def _parse(files: Files) -> Arrays:
    train, test = (_part(files, name) for name in files.release.files)
    return Arrays(*train, *test, tuple("0123456789"))


def _part(files: Files, name: str) -> tuple[Pixels, Labels]:
    try:
        from scipy import io as matlab  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("the .mat files of SVHN need SciPy; pip install 'smart-edge[train]'") from error
    with files.content(name) as raw, warnings.catch_warnings():
        warnings.simplefilter("error", matlab.matlab.MatReadWarning)  # of two variables of one name one would be lost
        try:
            shapes = {variable: (shape, kind) for variable, shape, kind in matlab.whosmat(io.BytesIO(raw))}
        except NotImplementedError as error:
            raise files.damaged(name, "a .mat file of version 7.3, which is HDF5") from error
        missing = [variable for variable in ("X", "y") if variable not in shapes]
        if missing:
            raise files.damaged(name, f"no {' and no '.join(missing)}")
        (shape, kind), (label_shape, label_kind) = shapes["X"], shapes["y"]
        # Asked before it is read, of the headers alone: a compressed array of a few bytes can claim any size, and cells
        # could hold more of them. Unpacked, X may have as many bytes as the file may.
        limit = files.release.files[name] // _IMAGE_BYTES
        if shape[:3] != (_SIDE, _SIDE, 3) or len(shape) != 4 or kind != "uint8":
            raise files.damaged(name, f"X as {kind} {shape} instead of uint8 ({_SIDE}, {_SIDE}, 3, N)")
        if shape[3] > limit:
            raise files.damaged(name, f"X of {shape[3]} images, which are more than {limit}")
        if label_kind not in _NUMBERS:
            raise files.damaged(name, f"labels that are not whole numbers but of type {label_kind}")
        if label_shape not in {(shape[3], 1), (1, shape[3])}:
            raise files.damaged(name, f"y of shape {label_shape} for {shape[3]} images")
        found = matlab.loadmat(io.BytesIO(raw), variable_names=["X", "y"])
    labels = files.labels(name, found["y"].reshape(-1), images=shape[3], first=1, classes=10)
    return np.ascontiguousarray(found["X"].transpose(3, 0, 1, 2)), labels % 10  # the digit 0 has the label 10
