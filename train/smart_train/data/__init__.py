"""Image sets in memory, always uint8 NHWC: published ones, ``npz:FILE`` and ``folder:DIR``; and their augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_common.files import default_cache_dir
    from smart_train.data.augment import Augmentation
    from smart_train.data.images import ImageSet, Split
    from smart_train.data.load import DATA_SPECS, load_data

__all__ = [
    "DATA_SPECS",
    "Augmentation",
    "ImageSet",
    "Split",
    "default_cache_dir",
    "load_data",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Augmentation": "smart_train.data.augment",
        "DATA_SPECS": "smart_train.data.load",
        "ImageSet": "smart_train.data.images",
        "Split": "smart_train.data.images",
        "default_cache_dir": "smart_common.files",
        "load_data": "smart_train.data.load",
    },
)
