"""``npz:FILE``: arrays that the user saved with NumPy."""

from __future__ import annotations

import numpy as np

from smart_train.data.images import ImageSet, make_image_set
from smart_train.data.source import expanded
from smart_train.errors import DataError

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def npz(where: str) -> ImageSet:
    """Read a .npz file: ``train_images``, ``test_images`` (uint8 NHWC), ``train_labels``, ``test_labels`` (integers).

    An optional array ``class_names`` of strings names the classes.

    Raises:
        DataError: if the file is missing, damaged, holds Python objects or lacks an array, or a ``~`` stands for no
            home directory.
    """
    wanted = ", ".join(_ARRAYS)
    path = expanded(where)
    try:
        # An object array would be a pickle, which can run code: allow_pickle stays off.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (*_ARRAYS, "class_names") if name in arrays.files}
    except FileNotFoundError as error:
        raise DataError(f"no file {where}; give a .npz with {wanted}") from error
    except Exception as error:  # a damaged zip, deflate stream or array header each have an exception of their own
        raise DataError(f"{where} is damaged or no .npz of plain arrays; save {wanted} with numpy.savez") from error
    missing = [name for name in _ARRAYS if name not in found]
    if missing:
        raise DataError(f"no array {', '.join(missing)} in {where}; save {wanted} with numpy.savez")
    names = found.pop("class_names", None)
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise DataError(
            f"expected class_names in {where} as strings (classes,), got {names.dtype} of shape {names.shape}; "
            f"leave them out or save a list of strings"
        )
    return make_image_set(
        kind="npz", where=where, **found, class_names=None if names is None else [str(name) for name in names]
    )
