"""The networks that train by name, residual ones for any input size and channel count, and those of users' own."""

from __future__ import annotations

from smart_train.architectures.build import ARCHITECTURES, MAX_WIDTH, Architecture, build_network
from smart_train.architectures.custom import CUSTOM, Argument, Factory, import_factory
from smart_train.architectures.resnet import ResNet
from smart_train.architectures.wide_resnet import WideResNet

__all__ = [
    "ARCHITECTURES",
    "CUSTOM",
    "MAX_WIDTH",
    "Architecture",
    "Argument",
    "Factory",
    "ResNet",
    "WideResNet",
    "build_network",
    "import_factory",
]
