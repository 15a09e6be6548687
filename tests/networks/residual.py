"""Residual networks: basic blocks, bottlenecks, grouped convolutions (ResNeXt), pre-activation (wide)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unit(before: int, after: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
    )


class Basic(nn.Module):
    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.first = unit(before, after, 3, stride=stride)
        self.second = unit(after, after, 3)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if stride == 1 and before == after else unit(before, after, 1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.second(self.relu(self.first(features)))
        inner += self.shortcut(features)
        result: Tensor = self.relu(inner)
        return result


class Bottleneck(nn.Module):
    """Figure 5 of arXiv 1512.03385, or with ``groups`` figure 3 (c) of ResNeXt (arXiv 1611.05431)."""

    def __init__(self, before: int, after: int, *, stride: int, groups: int = 1) -> None:
        super().__init__()
        inner = after // 2
        self.reduce = unit(before, inner, 1)
        self.middle = unit(inner, inner, 3, stride=stride, groups=groups)
        self.expand = unit(inner, after, 1)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if stride == 1 and before == after else unit(before, after, 1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.expand(self.relu(self.middle(self.relu(self.reduce(features)))))
        result: Tensor = self.relu(inner + self.shortcut(features))
        return result


class Preactivated(nn.Module):
    """Figure 1 (d) of arXiv 1605.07146: batch norm and ReLU first, dropout between the convolutions."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.dropout = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        active = torch.relu(self.norm1(features))
        inner = self.conv2(self.dropout(torch.relu(self.norm2(self.conv1(active)))))
        result: Tensor = inner + (features if self.shortcut is None else self.shortcut(active))
        return result


class Residual(nn.Module):
    """A stem, four blocks in two stages, average pool, linear."""

    def __init__(self, blocks: list[nn.Module], *, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = unit(in_channels, width, 3)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.blocks(torch.relu(self.stem(images))))
        scores: Tensor = self.head(torch.flatten(features, 1))
        return scores


class Wide(nn.Module):
    """A bare convolution as stem, two stages, a batch norm at the end."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            Preactivated(8, width, stride=1), Preactivated(width, width, stride=1),
            Preactivated(width, 2 * width, stride=2),
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.blocks(self.stem(images))))
        scores: Tensor = self.head(features.mean(dim=(2, 3)))
        return scores


def basic(*, num_classes: int, in_channels: int, width: int = 16) -> nn.Module:
    blocks: list[nn.Module] = [
        Basic(width, width, stride=1),
        Basic(width, width, stride=1),
        Basic(width, 2 * width, stride=2),
    ]
    return Residual(blocks, in_channels=in_channels, num_classes=num_classes, width=width)


def bottleneck(*, num_classes: int, in_channels: int, width: int = 16, groups: int = 1) -> nn.Module:
    blocks: list[nn.Module] = [
        Bottleneck(width, width, stride=1, groups=groups),
        Bottleneck(width, 2 * width, stride=2, groups=groups),
        Bottleneck(2 * width, 2 * width, stride=1, groups=groups),
    ]
    return Residual(blocks, in_channels=in_channels, num_classes=num_classes, width=width)


def grouped(*, num_classes: int, in_channels: int, width: int = 32, groups: int = 8) -> nn.Module:
    return bottleneck(num_classes=num_classes, in_channels=in_channels, width=width, groups=groups)
