"""Random parts, crops and flips of whole batches, on whatever device the images are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from smart_train.errors import ConfigError

_LEAST_AREA = 0.35  # torchvision's default, 0.08, is meant for ImageNet's million pictures
_WIDEST = 4 / 3


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, each on its own: a random part of it, a crop after zero padding, and a flip.

    Attributes:
        resized_crop: take a random part, scaled to the size of the image (torchvision's RandomResizedCrop): 35% to 100%
            of its area, its sides as 3 to 4 up to 4 to 3.
        crop_pad: pixels of zeros on each side before a crop of the old size; 0 for none.
        flip: mirror left and right with probability 1/2.

    Raises:
        ConfigError: if ``crop_pad`` is negative.

    Example:
        ``Augmentation(crop_pad=4, flip=True)`` is what CIFAR is usually trained with.
    """

    crop_pad: int = 0
    flip: bool = False
    resized_crop: bool = False

    def __post_init__(self) -> None:
        if self.crop_pad < 0:
            raise ConfigError(f"expected crop padding of 0 or more pixels, got {self.crop_pad}; 4 is usual for 32x32")

    def check(self, *, height: int, width: int) -> None:
        """Raise ConfigError if images of this size cannot be padded so far."""
        if self.crop_pad > min(height, width):
            raise ConfigError(
                f"expected crop padding of at most {min(height, width)} pixels for images of {height}x{width}, got "
                f"{self.crop_pad}; a crop must not lie in the padding alone"
            )

    def apply(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the augmented images, uint8 (N, H, W, C); ``images`` itself where nothing is to be done.

        Args:
            images: uint8 (N, H, W, C) on any device; it is not changed.
            generator: on the same device; all random numbers come from it, and none where nothing is to be done.

        Raises:
            ConfigError: if the padding is larger than a side.
        """
        if self.resized_crop:
            images = _random_parts(images, generator=generator)
        if not self.crop_pad and not self.flip:
            return images
        count, height, width, channels = images.shape
        self.check(height=height, width=width)
        pad = self.crop_pad
        device = images.device
        rows = torch.arange(height, device=device).expand(count, height)
        columns = torch.arange(width, device=device).expand(count, width)
        if self.flip:
            mirrored = torch.randint(2, (count, 1), generator=generator, device=device) == 1
            columns = torch.where(mirrored, width - 1 - columns, columns)
        if pad:
            down, right = torch.randint(2 * pad + 1, (2, count, 1), generator=generator, device=device)
            rows, columns = rows + down, columns + right
            images = functional.pad(images, (0, 0, pad, pad, pad, pad))
        # Whole pixels by their number in the batch: several times faster than an index for each axis.
        _, padded_height, padded_width, _ = images.shape
        first = torch.arange(count, device=device)[:, None, None] * padded_height
        pixels = (first + rows[:, :, None]) * padded_width + columns[:, None, :]
        return images.reshape(-1, channels).index_select(0, pixels.reshape(-1)).reshape(count, height, width, channels)


def _random_parts(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return a random part of each image, uint8 (N, H, W, C), scaled to its size.

    As torchvision's RandomResizedCrop draws it (Szegedy et al. 2015, arXiv 1409.4842): the area is uniform, the aspect
    ratio's logarithm too. A side that is then longer than the image is cut to it, where torchvision draws anew.
    """
    count, height, width, _ = images.shape
    random = torch.rand(4, count, generator=generator, device=images.device)
    area = _LEAST_AREA + random[0] * (1 - _LEAST_AREA)
    ratio = torch.exp((2 * random[1] - 1) * math.log(_WIDEST))  # of the part's width to its height, in pixels
    across = (area * ratio * height / width).sqrt().clamp(max=1)  # fractions of the image's sides
    down = (area / ratio * width / height).sqrt().clamp(max=1)
    # In the coordinates of grid_sample, where an image reaches from -1 to 1.
    zero = torch.zeros_like(across)
    right, below = (1 - across) * (2 * random[2] - 1), (1 - down) * (2 * random[3] - 1)
    theta = torch.stack([across, zero, right, zero, down, below], dim=1).reshape(count, 2, 3)
    pixels = images.permute(0, 3, 1, 2).to(torch.float32)
    with torch.autocast(images.device.type, enabled=False):  # half precision cannot tell where a pixel is
        grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
        parts = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return parts.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
