"""The networks that train by name, residual ones for any input size and channel count, and those of users' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_train.architectures.build import ARCHITECTURES, MAX_WIDTH, Architecture, build_network
    from smart_train.architectures.custom import Factory, import_factory
    from smart_train.architectures.names import CUSTOM, Argument
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

__getattr__ = lazy_attributes(
    __name__,
    {
        "ARCHITECTURES": "smart_train.architectures.build",
        "Architecture": "smart_train.architectures.build",
        "Argument": "smart_train.architectures.names",
        "CUSTOM": "smart_train.architectures.names",
        "Factory": "smart_train.architectures.custom",
        "MAX_WIDTH": "smart_train.architectures.build",
        "ResNet": "smart_train.architectures.resnet",
        "WideResNet": "smart_train.architectures.wide_resnet",
        "build_network": "smart_train.architectures.build",
        "import_factory": "smart_train.architectures.custom",
    },
)
