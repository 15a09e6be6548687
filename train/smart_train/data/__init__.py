"""Image sets in memory, always uint8 NHWC: published ones, ``npz:FILE`` and ``folder:DIR``; and their augmentation."""

from smart_common.cache import default_cache_dir
from smart_train.data.augment import Augmentation
from smart_train.data.images import ImageSet, Split
from smart_train.data.load import DATA_SPECS, load_data

__all__ = ["DATA_SPECS", "Augmentation", "ImageSet", "Split", "default_cache_dir", "load_data"]
