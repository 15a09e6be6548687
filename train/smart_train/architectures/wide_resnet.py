"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146): pre-activation blocks, small-image stem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smart_train.architectures.resnet import initialise_

STEM_CHANNELS = 16  # table 1 of the paper: the widening factor leaves the first convolution alone


class PreactivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions (figure 1 (c) of the paper, without dropout).

    Where the shape changes, the shortcut is a convolution that reads the activated input, as the authors' code does.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride)."""
        active = torch.relu(self.bn1(features))
        inner = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        result: Tensor = inner + (features if self.shortcut is None else self.shortcut(active))
        return result


class WideResNet(nn.Module):
    """WRN-d-k: a 3x3 stem, three stages (each but the first halves the size), average pool, linear.

    Args:
        num_classes: scores per image.
        in_channels: image channels.
        blocks: blocks a stage: (d - 4) / 6 each, by the authors' count of layers.
        width: channels of the first stage, 16 k; each further stage has twice as many.
    """

    def __init__(self, *, num_classes: int, in_channels: int, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, STEM_CHANNELS, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        before = STEM_CHANNELS
        for stage, count in enumerate(blocks):
            channels = width * 2**stage
            for i in range(count):
                layers.append(PreactivationBlock(before, channels, stride=2 if stage and not i else 1))
                before = channels
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to scores (N, classes)."""
        features = torch.relu(self.bn(self.blocks(self.conv(images))))
        scores: Tensor = self.fc(features.mean(dim=(2, 3)))
        return scores
