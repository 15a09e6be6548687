"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545), with both ways to write its layer norm over channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of (N, C, H, W), as timm and torchvision have one each."""

    def forward(self, features: Tensor) -> Tensor:
        moved = F.layer_norm(features.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return moved.permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of whole images while it trains."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return features
        keep = torch.rand(len(features), 1, 1, 1, device=features.device) >= self.rate
        return features * keep / (1 - self.rate)


class Block(nn.Module):
    """Depthwise 7x7, layer norm, two linear layers on the last axis, a layer scale that starts next to nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))
        self.drop = DropPath(0.1)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(features).permute(0, 2, 3, 1))
        inner = self.scale * self.project(F.gelu(self.expand(inner)))
        result: Tensor = features + self.drop(inner.permute(0, 3, 1, 2))
        return result


class ConvNeXt(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 2, stride=2), LayerNorm2d(width, eps=1e-6))
        self.first = nn.Sequential(Block(width), Block(width))
        self.down = nn.Sequential(LayerNorm2d(width, eps=1e-6), nn.Conv2d(width, 2 * width, 2, stride=2))
        self.second = Block(2 * width)
        self.norm = nn.LayerNorm(2 * width, eps=1e-6)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.down(self.first(self.stem(images))))
        scores: Tensor = self.head(self.norm(features.mean(dim=(2, 3))))
        return scores
