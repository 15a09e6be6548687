"""Residual networks with the names that public checkpoints have: RobustBench's, and those of CIFAR networks since 2017.

Written from the names and shapes in such files, apart from the package's own networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)


class PostBlock(nn.Module):
    """conv1, bn1, conv2, bn2, shortcut.0, shortcut.1."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(before, after, 3, stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = _convolution(after, after, 3), nn.BatchNorm2d(after)
        projected = [_convolution(before, after, 1, stride), nn.BatchNorm2d(after)]
        self.shortcut = nn.Sequential(*(projected if (before, stride) != (after, 1) else []))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        result: Tensor = (inner + self.shortcut(x)).relu()
        return result


class PreBlock(nn.Module):
    """bn1, conv1, bn2, conv2, shortcut.0; ``raw`` for a shortcut before the first batch norm."""

    def __init__(self, before: int, after: int, stride: int, *, raw: bool = False) -> None:
        super().__init__()
        self.raw = raw
        self.bn1, self.conv1 = nn.BatchNorm2d(before), _convolution(before, after, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), _convolution(after, after, 3)
        if (before, stride) != (after, 1):
            self.shortcut = nn.Sequential(_convolution(before, after, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        aside = self.shortcut(x if self.raw else active) if hasattr(self, "shortcut") else x
        result: Tensor = self.conv2(self.bn2(self.conv1(active)).relu()) + aside
        return result


class RawBlock(PreBlock):
    """The same before the first batch norm."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__(before, after, stride, raw=True)


class ResNet18(nn.Module):
    """conv1, bn1 behind it or bn at the end or neither, layer1 to layer4 of two blocks each, linear."""

    def __init__(self, *, width: int, block: type[nn.Module] = PostBlock, last: bool = False) -> None:
        super().__init__()
        self.conv1 = _convolution(3, width, 3)
        if block is PostBlock:
            self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage in range(4):
            after = width * 2**stage
            layer = nn.Sequential(block(before, after, 2 if stage else 1), block(after, after, 1))
            self.add_module(f"layer{stage + 1}", layer)
            before = after
        if last:
            self.bn = nn.BatchNorm2d(before)
        self.linear = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if hasattr(self, "bn1"):
            x = self.bn1(x).relu()
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        if hasattr(self, "bn"):
            x = self.bn(x).relu()
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


class WideBlock(nn.Module):
    """bn1, conv1, bn2, conv2, convShortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), _convolution(before, after, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), _convolution(after, after, 3)
        self.convShortcut = None if before == after else _convolution(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        aside = x if self.convShortcut is None else self.convShortcut(active)
        result: Tensor = aside + self.conv2(self.bn2(self.conv1(active)).relu())
        return result


class WideStage(nn.Module):
    """``layer.0`` and so on."""

    def __init__(self, before: int, after: int, *, blocks: int, stride: int) -> None:
        super().__init__()
        rest = [WideBlock(after, after, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(before, after, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


class WideResNet(nn.Module):
    """conv1, block1 to block3, bn1, fc; ``unused`` for the sub_block1 that TRADES's files have too."""

    def __init__(self, *, blocks: int, width: int, unused: bool = False) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 16, 3)
        self.block1 = WideStage(16, width, blocks=blocks, stride=1)
        if unused:
            self.sub_block1 = WideStage(16, width, blocks=blocks, stride=1)
        self.block2 = WideStage(width, 2 * width, blocks=blocks, stride=2)
        self.block3 = WideStage(2 * width, 4 * width, blocks=blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        scores: Tensor = self.fc(self.bn1(x).relu().mean((2, 3)))
        return scores


@torch.no_grad()
def settled(network: nn.Module) -> nn.Module:
    """Return the network in eval mode, its batch norms with statistics of images and scales and shifts by chance."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    network.train()(torch.rand(32, 3, 16, 16))
    return network.eval()
