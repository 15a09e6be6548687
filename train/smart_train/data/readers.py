"""Readers of the data formats: each gives arrays to :func:`make_image_set`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smart_devices.errors import MissingExtraError
from smart_runtime.errors import InputError
from smart_runtime.manifest import Colour
from smart_runtime.pictures import read_picture
from smart_train.data.images import ImageSet, Labels, Pixels, make_image_set, stratified
from smart_train.errors import DataError

_DIGITS_TEST = 360  # a fifth of scikit-learn's 1,797 digits
_DIGITS_SPLIT_SEED = 1797
_NPZ_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_EXIF_ORIENTATION = 0x0112
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}


def digits() -> ImageSet:
    """Return scikit-learn's handwritten digits: 1,797 grey 8x8 images of 17 levels.

    They are the test part of UCI's "Optical Recognition of Handwritten Digits".
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "expected scikit-learn for the digits, got none; pip install 'smart-edge[train]'"
        ) from error
    bundle = load_digits()
    images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bundle.target.astype(np.int64)
    test = stratified(labels, count=_DIGITS_TEST, generator=np.random.default_rng(_DIGITS_SPLIT_SEED))
    return make_image_set(
        kind="digits",
        where="scikit-learn's digits",
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
    )


def npz(where: str) -> ImageSet:
    """Read a .npz file: ``train_images``, ``test_images`` (uint8 NHWC), ``train_labels``, ``test_labels`` (integers).

    An optional array ``class_names`` of strings names the classes.

    Raises:
        DataError: if the file is missing, damaged, holds Python objects or lacks an array.
    """
    wanted = ", ".join(_NPZ_ARRAYS)
    try:
        # An object array would be a pickle, which can run code: allow_pickle stays off.
        with Path(where).expanduser().open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (*_NPZ_ARRAYS, "class_names") if name in arrays.files}
    except FileNotFoundError as error:
        raise DataError(f"expected a .npz file with {wanted} at {where}, got no such file; check the path") from error
    except Exception as error:  # a damaged zip, deflate stream or array header each have an exception of their own
        raise DataError(
            f"expected a .npz file with plain arrays {wanted}, got a damaged or foreign file {where}; save them with "
            f"numpy.savez"
        ) from error
    missing = [name for name in _NPZ_ARRAYS if name not in found]
    if missing:
        raise DataError(f"expected arrays {wanted} in {where}, got no {', '.join(missing)}; save them with numpy.savez")
    names = found.pop("class_names", None)
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise DataError(
            f"expected class_names in {where} as strings (classes,), got {names.dtype} of shape {names.shape}; "
            f"leave them out or save a list of strings"
        )
    return make_image_set(
        kind="npz", where=where, **found, class_names=None if names is None else [str(name) for name in names]
    )


def folder(where: str) -> ImageSet:
    """Read an image folder: ``train/CLASS/picture`` and ``test/CLASS/picture``, classes in alphabetical order.

    Pictures are read as grey where every one of them is grey, else as RGB, and must all have one size.

    Raises:
        DataError: if a part is missing, a class has no training picture, a picture cannot be read, or sizes differ.
    """
    root = Path(where).expanduser()  # the shell leaves ~ alone behind a colon
    layout = f"train/CLASS/*.png and test/CLASS/*.png under {where}"
    if not (root / "train").is_dir() or not (root / "test").is_dir():
        raise DataError(f"expected {layout}, got no train or no test folder; check the path")
    classes = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    strangers = sorted({p.name for p in (root / "test").iterdir() if p.is_dir()} - set(classes))
    if len(classes) < 2 or strangers:
        got = f"test classes that are not in train: {', '.join(strangers)}" if strangers else f"{len(classes)} in train"
        raise DataError(f"expected {layout} with the same two or more classes, got {got}; sort the pictures by class")
    files = {
        part: [(p, i) for i, name in enumerate(classes) for p in _pictures(root / part / name)]
        for part in ("train", "test")
    }
    empty = ["test"] if not files["test"] else []
    empty += [f"train/{name}" for i, name in enumerate(classes) if all(label != i for _, label in files["train"])]
    if empty:
        raise DataError(
            f"expected {layout}, got no picture in {' and '.join(empty)}; PNG, JPEG, BMP, WebP and PNM are read"
        )
    everything = files["train"] + files["test"]
    (height, width), colour = _size_and_colour([p for p, _ in everything])
    arrays: dict[str, Pixels | Labels] = {}
    for part, found in files.items():
        channels = 1 if colour == "L" else 3
        images = np.empty((len(found), height, width, channels), dtype=np.uint8)
        for i, (path, _) in enumerate(found):
            images[i] = _read(path, height=height, width=width, colour=colour)
        arrays[f"{part}_images"] = images
        arrays[f"{part}_labels"] = np.array([label for _, label in found], dtype=np.int64)
    return make_image_set(kind="folder", where=where, **arrays, class_names=classes)


def _pictures(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if p.suffix.lower() in _PICTURES) if directory.is_dir() else []


def _size_and_colour(paths: list[Path]) -> tuple[tuple[int, int], Colour]:
    """Return the one (height, width) of all pictures, and L or RGB, from their headers alone."""
    try:
        from PIL import Image  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "expected Pillow to read pictures, got none; pip install 'smart-edge[image]'"
        ) from error
    size: tuple[int, int] | None = None
    grey = True
    for path in paths:
        try:
            with Image.open(path) as picture:
                turned = picture.getexif().get(_EXIF_ORIENTATION, 1) >= 5  # read_picture will turn it upright
                here = (picture.width, picture.height) if turned else (picture.height, picture.width)
                grey = grey and picture.mode in {"1", "L", "LA"}
        except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
            raise DataError(
                f"expected a picture, got {path}, which cannot be read ({error}); remove or replace it"
            ) from error
        if size is not None and here != size:
            raise DataError(
                f"expected pictures of one size, got {size[1]}x{size[0]} and {here[1]}x{here[0]} ({path}); "
                f"resize them first"
            )
        size = here
    assert size is not None
    return size, "L" if grey else "RGB"


def _read(path: Path, *, height: int, width: int, colour: Colour) -> Pixels:
    try:
        return read_picture(path, height=height, width=width, colour=colour)
    except InputError as error:
        raise DataError(str(error)) from error
