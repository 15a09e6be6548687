"""ShuffleNet V2 (Ma et al. 2018, arXiv 1807.11164): half of the channels pass by, then all are shuffled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.residual import unit


def shuffle(features: Tensor, groups: int) -> Tensor:
    count, channels, height, width = features.shape
    parted = features.view(count, groups, channels // groups, height, width)
    return parted.transpose(1, 2).reshape(count, channels, height, width)


def branch(before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        unit(before, after, 1), nn.ReLU(inplace=True),
        unit(after, after, 3, stride=stride, groups=after),
        unit(after, after, 1), nn.ReLU(inplace=True),
    )  # fmt: skip


class Down(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            unit(before, before, 3, stride=2, groups=before), unit(before, after // 2, 1), nn.ReLU(inplace=True)
        )
        self.right = branch(before, after // 2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        return shuffle(torch.cat([self.left(features), self.right(features)], dim=1), 2)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.right = branch(channels // 2, channels // 2, stride=1)

    def forward(self, features: Tensor) -> Tensor:
        left, right = features.chunk(2, dim=1)
        return shuffle(torch.cat([left, self.right(right)], dim=1), 2)


class ShuffleNet(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(unit(in_channels, width // 2, 3), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(Down(width // 2, width), Block(width), Block(width))
        self.last = nn.Sequential(unit(width, 64, 1), nn.ReLU(inplace=True))
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.last(self.stages(self.stem(images)))
        scores: Tensor = self.head(features.mean([2, 3]))
        return scores
