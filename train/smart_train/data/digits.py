"""scikit-learn's handwritten digits: a data set that is on every machine."""

from __future__ import annotations

import numpy as np

from smart_common.errors import MissingExtraError
from smart_train.data.images import ImageSet, make_image_set, stratified

_TEST = 360  # a fifth of the 1,797 digits
_SPLIT_SEED = 1797


def digits() -> ImageSet:
    """Return scikit-learn's handwritten digits: 1,797 grey 8x8 images of 17 levels.

    They are the test part of UCI's "Optical Recognition of Handwritten Digits".
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("the digits need scikit-learn; pip install 'smart-edge[train]'") from error
    bundle = load_digits()
    images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bundle.target.astype(np.int64)
    test = stratified(labels, count=_TEST, generator=np.random.default_rng(_SPLIT_SEED))
    return make_image_set(
        kind="digits",
        where="scikit-learn's digits",
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
    )
