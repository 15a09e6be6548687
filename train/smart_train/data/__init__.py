"""Image sets in memory, always uint8 NHWC: the embedded digits, ``npz:FILE`` and ``folder:DIR``."""

from smart_train.data.images import ImageSet, load_data

__all__ = ["ImageSet", "load_data"]
