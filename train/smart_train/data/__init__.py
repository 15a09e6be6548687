"""Image sets in memory, always uint8 NHWC: published ones, ``npz:FILE`` and ``folder:DIR``; and their augmentation."""
