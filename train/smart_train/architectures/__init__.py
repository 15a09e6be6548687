"""The networks that train by name: residual ones, for any input size and channel count."""

from __future__ import annotations

from smart_train.architectures.build import ARCHITECTURES, MAX_WIDTH, Architecture, build_network
from smart_train.architectures.resnet import ResNet
from smart_train.architectures.wide_resnet import WideResNet

__all__ = ["ARCHITECTURES", "MAX_WIDTH", "Architecture", "ResNet", "WideResNet", "build_network"]
