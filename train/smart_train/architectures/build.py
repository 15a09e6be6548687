"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from smart_common.errors import alternatives
from smart_train.architectures.custom import Factory, call_factory
from smart_train.architectures.resnet import WIDE_STEM, Bottleneck, PreactivationResNet, RawShortcutBlock, ResNet
from smart_train.choices import CUSTOM, Argument
from smart_train.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """A network by name: its ``family``, ``blocks`` per stage and the default ``width`` of the first stage."""

    family: Callable[..., nn.Module]
    blocks: tuple[int, ...]
    width: int


_WIDE = partial(PreactivationResNet, stem=WIDE_STEM)
_RAW = partial(PreactivationResNet, block=RawShortcutBlock, last_norm=False)

ARCHITECTURES: Mapping[str, Architecture] = {
    "resnet8": Architecture(ResNet, blocks=(1, 1, 1), width=48),
    "resnet18": Architecture(ResNet, blocks=(2, 2, 2, 2), width=64),
    "resnet20": Architecture(ResNet, blocks=(3, 3, 3), width=16),
    "resnet34": Architecture(ResNet, blocks=(3, 4, 6, 3), width=64),
    "resnet50": Architecture(partial(ResNet, block=Bottleneck, imagenet_stem=True), blocks=(3, 4, 6, 3), width=64),
    "preact-resnet18": Architecture(PreactivationResNet, blocks=(2, 2, 2, 2), width=64),
    "preact-resnet18-raw": Architecture(_RAW, blocks=(2, 2, 2, 2), width=64),
    "wrn16-8": Architecture(_WIDE, blocks=(2, 2, 2), width=16 * 8),
    "wrn28-10": Architecture(_WIDE, blocks=(4, 4, 4), width=16 * 10),
    "wrn40-2": Architecture(_WIDE, blocks=(6, 6, 6), width=16 * 2),
}
MAX_WIDTH = 4096  # a checkpoint that asks for more is an attempt to fill the memory


def build_network(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    arguments: Mapping[str, Argument],
    generator_seed: int,
    factory: Factory | None = None,
) -> nn.Module:
    """Build a network with weights drawn from ``generator_seed``; the global random state is left as it was.

    Args:
        name: a key of ``ARCHITECTURES``, or ``CUSTOM``.
        num_classes: scores per image, 2 or more.
        in_channels: image channels, 1 or more.
        arguments: ``width``, channels of the first stage, the architecture's own where absent; of ``CUSTOM`` whatever
            the factory takes.
        generator_seed: of the initial weights.
        factory: what makes a ``CUSTOM`` network, and nothing else.

    Raises:
        ConfigError: if the name, an argument or its range is unknown, or a factory is missing, fails or is not wanted.
    """
    if name == CUSTOM:
        if factory is None:
            raise ConfigError("no factory for a network of your own; pass factory=")
        return call_factory(
            factory,
            num_classes=num_classes,
            in_channels=in_channels,
            arguments=arguments,
            generator_seed=generator_seed,
        )
    if factory is not None:
        raise ConfigError(f"the network {name!a:.100} is one of ours and takes no factory; leave --model out")
    if name not in ARCHITECTURES:
        raise ConfigError(f"unknown model {alternatives(str(name), ARCHITECTURES)}")
    unknown = sorted(set(arguments) - {"width"})
    if unknown:
        raise ConfigError(f"{name} has no argument {', '.join(unknown)}, only width; write --model-arg width=32")
    found = ARCHITECTURES[name]
    width = arguments.get("width", found.width)
    if type(width) is not int:
        raise ConfigError(f"expected a width as an integer, got {width!r}; write --model-arg width=32")
    if not 1 <= width <= MAX_WIDTH:
        raise ConfigError(f"expected a width from 1 to {MAX_WIDTH}, got {width}; the default is {found.width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        return found.family(num_classes=num_classes, in_channels=in_channels, blocks=found.blocks, width=width)
