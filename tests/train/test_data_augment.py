from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference.augment import outcomes
from smart_train.data.augment import Augmentation
from smart_train.errors import ConfigError


def pictures(count: int, *, height: int = 5, width: int = 4, channels: int = 2) -> Tensor:
    """Images without a zero and without two equal pixels in a row, so that each crop can be told from the others."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(1, 256, (count, height, width, channels), dtype=np.uint8))


@given(
    count=st.integers(0, 5),
    size=st.tuples(st.integers(2, 6), st.integers(2, 6), st.sampled_from([1, 3])),
    pad=st.integers(0, 2),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_image_becomes_one_of_its_own_crops_and_flips(
    count: int, size: tuple[int, int, int], pad: int, flip: bool, seed: int
) -> None:
    height, width, channels = size
    images = pictures(count, height=height, width=width, channels=channels)
    before = images.clone()
    result = Augmentation(crop_pad=pad, flip=flip).apply(images, generator=torch.Generator().manual_seed(seed))
    assert (result.dtype, result.shape) == (torch.uint8, images.shape)
    assert torch.equal(images, before), "the images given must not change"
    for i, (image, augmented) in enumerate(zip(images.numpy(), result.numpy(), strict=True)):
        possible = outcomes(image, pad=pad, flip=flip).values()
        assert any(np.array_equal(augmented, one) for one in possible), f"image {i} is no crop or flip of itself"


@pytest.mark.parametrize("augmentation", [Augmentation(crop_pad=2, flip=True), Augmentation(crop_pad=1)])
def test_the_same_generator_state_gives_the_same_images(augmentation: Augmentation) -> None:
    images = pictures(64)
    generator = torch.Generator().manual_seed(7)
    state = generator.get_state()
    first = augmentation.apply(images, generator=generator)
    second = augmentation.apply(images, generator=generator)
    generator.set_state(state)
    assert torch.equal(first, augmentation.apply(images, generator=generator))
    assert not torch.equal(first, second)


def test_no_augmentation_returns_the_images_and_draws_nothing() -> None:
    images, generator = pictures(3), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert Augmentation().apply(images, generator=generator) is images
    assert torch.equal(generator.get_state(), state)


def test_images_that_are_not_contiguous_are_augmented_alike() -> None:
    images = pictures(8)
    strange = images.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strange.is_contiguous()
    for augmentation in (Augmentation(flip=True), Augmentation(crop_pad=1)):
        results = [augmentation.apply(x, generator=torch.Generator().manual_seed(3)) for x in (images, strange)]
        assert torch.equal(*results)


def test_every_crop_and_flip_is_equally_likely() -> None:
    count, pad = 9000, 1
    image = pictures(1)[0]
    result = Augmentation(crop_pad=pad, flip=True).apply(
        image.expand(count, *image.shape), generator=torch.Generator().manual_seed(0)
    )
    seen = [one.tobytes() for one in result.numpy()]
    possible = outcomes(image.numpy(), pad=pad, flip=True)
    assert len({one.tobytes() for one in possible.values()}) == len(possible) == 18
    counts = np.array([seen.count(one.tobytes()) for one in possible.values()])
    assert counts.sum() == count
    # Chi-squared with 17 degrees of freedom exceeds 40.8 in one of a thousand seeds.
    expected = count / len(possible)
    assert ((counts - expected) ** 2 / expected).sum() < 40.8


def test_a_padding_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 or more pixels, got -1"):
        Augmentation(crop_pad=-1)
    images = pictures(2, height=5, width=4)
    with pytest.raises(ConfigError, match="at most 4 pixels for images of 5x4, got 5"):
        Augmentation(crop_pad=5).apply(images, generator=torch.Generator())
    assert Augmentation(crop_pad=4).apply(images, generator=torch.Generator()).shape == images.shape
