"""The networks that train by name: residual, with a small-image stem, for any input size and channel count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smart_train.errors import ConfigError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv 1512.03385, figure 2).

    The shortcut is a projection where the shape changes (option B there).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride)."""
        inner = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(features))


class ResNet(nn.Module):
    """A residual network: 3x3 stem, stages of basic blocks (each but the first halves the size), average pool, linear.

    Args:
        num_classes: scores per image.
        in_channels: image channels.
        blocks: basic blocks a stage.
        width: channels of the first stage; each further stage has twice as many.
    """

    def __init__(self, *, num_classes: int, in_channels: int, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        layers: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            out_channels = width * 2**stage
            for block in range(count):
                layers.append(BasicBlock(channels, out_channels, stride=2 if stage and not block else 1))
                channels = out_channels
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, arXiv 1502.01852, section 2.2
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to scores (N, classes)."""
        features = self.blocks(torch.relu(self.bn(self.conv(images))))
        scores: Tensor = self.fc(features.mean(dim=(2, 3)))
        return scores


@dataclass(frozen=True)
class Architecture:
    """A network by name: ``blocks`` per stage and the default first-stage ``width``."""

    blocks: tuple[int, ...]
    width: int


ARCHITECTURES: Mapping[str, Architecture] = {
    "resnet8": Architecture(blocks=(1, 1, 1), width=48),
    "resnet20": Architecture(blocks=(3, 3, 3), width=16),
    "resnet34": Architecture(blocks=(3, 4, 6, 3), width=64),
}
MAX_WIDTH = 4096  # a checkpoint that asks for more is an attempt to fill the memory


def build_network(
    name: str, *, num_classes: int, in_channels: int, arguments: Mapping[str, int], generator_seed: int
) -> nn.Module:
    """Build a named network with weights drawn from ``generator_seed``; the global random state is left as it was.

    Args:
        name: a key of ``ARCHITECTURES``.
        num_classes: scores per image, 2 or more.
        in_channels: image channels, 1 or more.
        arguments: ``width``, channels of the first stage; the architecture's own where absent.
        generator_seed: of the initial weights.

    Raises:
        ConfigError: if the name, an argument or its range is unknown.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"expected a model out of {', '.join(ARCHITECTURES)}, got {name!r}; use one of them")
    unknown = sorted(set(arguments) - {"width"})
    if unknown:
        raise ConfigError(
            f"expected model arguments out of width, got {', '.join(unknown)}; write --model-arg width=32"
        )
    found = ARCHITECTURES[name]
    width = arguments.get("width", found.width)
    if not 1 <= width <= MAX_WIDTH:
        raise ConfigError(f"expected a width from 1 to {MAX_WIDTH}, got {width}; the default is {found.width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        return ResNet(num_classes=num_classes, in_channels=in_channels, blocks=found.blocks, width=width)
