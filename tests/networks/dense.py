"""DenseNet (Huang et al. 2017, arXiv 1608.06993): each layer reads what all before it made, side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """Batch norm, ReLU, 1x1, batch norm, ReLU, 3x3 (DenseNet-B), whose result is put beside the input."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.conv2(self.relu(self.norm2(self.conv1(self.relu(self.norm1(features))))))
        return torch.cat([features, inner], dim=1)


class DenseNet(nn.Module):
    """Two dense blocks of two layers with a transition (C of DenseNet-BC) between them."""

    def __init__(self, *, num_classes: int, in_channels: int, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 2 * growth, 3, padding=1, bias=False)
        self.first = nn.Sequential(Layer(2 * growth, growth), Layer(3 * growth, growth))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, 2 * growth, 1, bias=False),
            nn.AvgPool2d(2),
        )
        self.second = nn.Sequential(Layer(2 * growth, growth), Layer(3 * growth, growth))
        self.norm = nn.BatchNorm2d(4 * growth)
        self.head = nn.Linear(4 * growth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.transition(self.first(self.stem(images))))
        features = torch.relu(self.norm(features))
        scores: Tensor = self.head(nn.functional.adaptive_avg_pool2d(features, 1).flatten(1))
        return scores
