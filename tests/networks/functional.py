"""Everything but the layers as functions: activations, pools, concatenation, sums; and two ways to be refused."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn


class FunctionalNet(nn.Module):
    """Two branches side by side, a sum, and control flow on a shape, which symbolic tracing cannot follow."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.left = nn.Conv2d(width, width, 1)
        self.right = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_right = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(2 * width, width, 3, stride=2, padding=1, bias=False)
        self.norm_mix = nn.BatchNorm2d(width)
        self.again = nn.Conv2d(width, width, 3, padding=1)
        self.slope = nn.PReLU(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.stem(images)), inplace=True)
        both = torch.cat((F.leaky_relu(self.left(features)), F.silu(self.norm_right(self.right(features)))), 1)
        features = F.relu(self.norm_mix(self.mix(both)))
        features = features + self.slope(self.again(features))
        if features.shape[-1] > 1:
            features = F.adaptive_avg_pool2d(features, 1)
        scores: Tensor = self.head(torch.flatten(features, 1))
        return scores
