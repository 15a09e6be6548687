"""Residual networks (He et al. 2016, arXiv 1512.03385), with preactivation (1603.05027) and wide ones (1605.07146)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDE_STEM = 16  # channels, of wide ones (their table 1): the widening factor leaves the first convolution alone


def initialise_(network: nn.Module) -> None:
    """Draw every convolution's weights from the global random state, in place (He et al. 2015, arXiv 1502.01852, 2.2).

    Scaled by the outputs of a filter, as the authors of both residual families do.
    """
    for module in network.modules():
        # On the meta device there are no values, and drawing them would import torch's compiler: a second for nothing.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _shortcut(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    """Return a projection where the shape changes (option B of the paper), else the identity."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 2 of the paper)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, channels, H / stride, W / stride)."""
        inner = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(features))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5 of the paper).

    The stride is in the 3x3, not in the first 1x1 as in the paper: what torchvision calls v1.5, with the accuracy and
    the 4.09 GMAC that are quoted for ResNet-50.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, 4 * channels, H / stride, W / stride)."""
        inner = torch.relu(self.bn1(self.conv1(features)))
        inner = torch.relu(self.bn2(self.conv2(inner)))
        return torch.relu(self.bn3(self.conv3(inner)) + self.shortcut(features))


class PreactivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions (figure 1 (c) of the wide paper, without dropout).

    Where the shape changes, the shortcut is a convolution that reads the activated input, as the authors' code does.
    """

    expansion = 1
    shortcut_reads_activated = True

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
        if self.shortcut is not None:
            features = self.shortcut(active if self.shortcut_reads_activated else features)
        result: Tensor = inner + features
        return result


class RawShortcutBlock(PreactivationBlock):
    """The same with a shortcut that reads its input as it is: that of fgsm-rs (Wong et al. 2020, arXiv 2001.03994)."""

    shortcut_reads_activated = False


def _stages(
    block: type[BasicBlock | Bottleneck | PreactivationBlock], before: int, *, blocks: tuple[int, ...], width: int
) -> tuple[nn.Sequential, int]:
    """Return the stages that follow ``before`` channels, and how many channels they end in."""
    layers: list[nn.Module] = []
    for stage, count in enumerate(blocks):
        channels = width * 2**stage
        for i in range(count):
            layers.append(block(before, channels, stride=2 if stage and not i else 1))
            before = channels * block.expansion
    return nn.Sequential(*layers), before


class ResNet(nn.Module):
    """A residual network: stem, stages of blocks (each but the first halves the size), average pool, linear.

    Args:
        num_classes: scores per image.
        in_channels: image channels.
        blocks: blocks a stage.
        width: channels inside the first stage; each further stage has twice as many.
        block: what the stages are made of.
        imagenet_stem: a 7x7 convolution and a 3x3 max-pool, both of stride 2, instead of one 3x3 convolution.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        blocks: tuple[int, ...],
        width: int,
        block: type[BasicBlock | Bottleneck] = BasicBlock,
        imagenet_stem: bool = False,
    ) -> None:
        super().__init__()
        if imagenet_stem:
            self.conv = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if imagenet_stem else nn.Identity()
        self.blocks, features = _stages(block, width, blocks=blocks, width=width)
        self.fc = nn.Linear(features, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to scores (N, classes)."""
        features = self.blocks(self.pool(torch.relu(self.bn(self.conv(images)))))
        scores: Tensor = self.fc(features.mean(dim=(2, 3)))
        return scores


class PreactivationResNet(nn.Module):
    """A residual network of preactivation blocks: 3x3 stem, stages (each but the first halves the size), pool, linear.

    WRN-d-k of the wide paper has three stages of (d - 4) / 6 blocks, by its authors' count of layers; the first has
    16 k channels.

    Args:
        num_classes: scores per image.
        in_channels: image channels.
        blocks: blocks a stage.
        width: channels of the first stage; each further stage has twice as many.
        stem: channels of the first convolution; None for as many as the first stage.
        block: what the stages are made of.
        last_norm: batch norm and ReLU before the pooling.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        blocks: tuple[int, ...],
        width: int,
        stem: int | None = None,
        block: type[PreactivationBlock] = PreactivationBlock,
        last_norm: bool = True,
    ) -> None:
        super().__init__()
        stem = width if stem is None else stem
        self.conv = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.blocks, features = _stages(block, stem, blocks=blocks, width=width)
        self.bn = nn.BatchNorm2d(features) if last_norm else None
        self.fc = nn.Linear(features, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to scores (N, classes)."""
        features = self.blocks(self.conv(images))
        if self.bn is not None:
            features = torch.relu(self.bn(features))
        scores: Tensor = self.fc(features.mean(dim=(2, 3)))
        return scores
