"""Extra training images, such as a generative model's, that stand beside a data set and never in its validation."""

from __future__ import annotations

from dataclasses import dataclass

from smart_common.errors import shortened
from smart_train.data.images import ImageSet, Split, checked_split, digest_of
from smart_train.data.npz_file import read_npz
from smart_train.errors import DataError

_OTHER_NAMES = {"images": ("image", "train_images"), "labels": ("label", "train_labels")}  # of published files


@dataclass(frozen=True, eq=False)
class ExtraImages:
    """Images with labels of a data set's classes, and their SHA-256, hexadecimal."""

    split: Split
    digest: str


def load_extra(spec: str, *, beside: ImageSet) -> ExtraImages:
    """Read ``npz:FILE`` with ``images``, uint8 (N, H, W, C), and ``labels``, integers (N,).

    The arrays may also be called ``image`` and ``label``, as in the files that come with papers on synthetic images
    (Wang et al. 2023, arXiv 2302.04638), or ``train_images`` and ``train_labels``.

    Raises:
        DataError: if it is another file, or the images do not fit those of ``beside``.
    """
    kind, _, where = spec.partition(":")
    if kind != "npz" or not where:
        raise DataError(
            f"expected extra images as npz:FILE, got {spec!a:.100}; save images and labels with numpy.savez"
        )
    found = read_npz(where, required=("images", "labels"), other_names=_OTHER_NAMES)
    where = shortened(where)
    split = checked_split(found["images"], found["labels"], part="extra", array="images", where=where)
    wanted, classes = beside.train.images.shape[1:], len(beside.class_names)
    if split.images.shape[1:] != wanted:
        raise DataError(
            f"expected extra images of {wanted} (height, width, channels) as in the data, got {split.images.shape[1:]} "
            f"in {where}; scale them"
        )
    if not len(split) or split.labels.min() < 0 or split.labels.max() >= classes:
        raise DataError(f"expected labels from 0 to {classes - 1} in {where}, as in the data; number the classes alike")
    return ExtraImages(split, digest_of(split))
