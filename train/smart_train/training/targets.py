"""What a batch is to be told: labels, or softer targets of images that may be mixed from two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_train.training.refinements import Refinements


@dataclass(frozen=True)
class Targets:
    """Makes the targets of a batch as ``refinements`` say; ``teacher`` as `methods.interface.Setup` has it."""

    refinements: Refinements
    num_classes: int
    teacher: nn.Module | None = None

    def __call__(self, images: Tensor, labels: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, labels and targets as `smart_train.methods.interface.Batch` has them.

        Args:
            images: float (N, C, H, W) in [0, 1].
            labels: int64 (N,).
            generator: on the device of ``images``; nothing is drawn without ``cutmix``.
        """
        wanted = self.refinements
        if not wanted.soft_targets:
            return images, labels, labels
        targets = F.one_hot(labels, self.num_classes).to(torch.float32)
        if wanted.cutmix:
            images, share, order = cut_and_pasted(images, alpha=wanted.cutmix, generator=generator)
            targets = (1 - share) * targets + share * targets[order]
            labels = labels if share <= 0.5 else labels[order]
        if wanted.label_smoothing:
            targets = (1 - wanted.label_smoothing) * targets + wanted.label_smoothing / self.num_classes
        if wanted.distill and self.teacher is not None:
            with torch.no_grad():
                told = (self.teacher(images).float() / wanted.temperature).softmax(dim=1)
            targets = (1 - wanted.distill) * targets + wanted.distill * told
        return images, labels, targets


def cut_and_pasted(images: Tensor, *, alpha: float, generator: torch.Generator) -> tuple[Tensor, float, Tensor]:
    """Paste one box of another image of the batch into each (CutMix, Yun et al. 2019, arXiv 1905.04899, section 3.2).

    Returns:
        The new images, the share of their pixels that was pasted, and which image (N,) each had it from.
    """
    count, _, height, width = images.shape
    device = images.device
    order = torch.randperm(count, generator=generator, device=device)
    # torch has no beta distribution that takes a generator.
    seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
    drawn = np.random.default_rng(seed)
    side = np.sqrt(1 - drawn.beta(alpha, alpha))
    (top, bottom), (left, right) = (
        (round(max(0, centre - side * length / 2)), round(min(length, centre + side * length / 2)))
        for length, centre in ((height, drawn.uniform(0, height)), (width, drawn.uniform(0, width)))
    )
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
    return mixed, (bottom - top) * (right - left) / (height * width), order
