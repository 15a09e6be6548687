"""Networks of torchvision and timm by name, where these are installed. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from smart_common.errors import MissingExtraError, alternatives, shortened
from smart_train.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of ImageNet's training images in [0, 1], for R, G and B: what the weights of all of torchvision's classifiers, and of
most of timm's, expect (torchvision's documentation, Models and pre-trained weights, the inference transforms).
"""


_LOADING = ("checkpoint", "pretrained", "weights", "cache", "progress")


@dataclass(frozen=True)
class LibraryNetwork:
    """A factory of a library's network, as `import_factory` returns those of users.

    Attributes:
        reference: its name, ``torchvision:resnet18``.
        mean, std: what images its published weights expect to be normalised by.
    """

    reference: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, *, num_classes: int, in_channels: int, **arguments: Any) -> nn.Module:
        """Return the network with weights drawn anew; raises ConfigError for channels that it cannot take."""
        library, _, name = self.reference.partition(":")
        for argument, value in arguments.items():
            # The arguments may be a stranger's, from a checkpoint, and some name files and weights to load.
            if not isinstance(value, bool | int | float) or argument.startswith(_LOADING):
                raise ConfigError(
                    f"{self.reference} takes numbers, true and false as arguments, and none that loads weights, got "
                    f"{shortened(argument)}; start from weights with --init"
                )
        network: nn.Module
        if library == "timm":
            network = import_module("timm").create_model(
                name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **arguments
            )
        else:
            if in_channels != 3:
                raise ConfigError(f"{self.reference} takes 3 channels, the images have {in_channels}; timm's take any")
            models = import_module("torchvision.models")
            network = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
        return network


def library_network(reference: str) -> LibraryNetwork:
    """Return the factory of the network that ``torchvision:NAME`` or ``timm:NAME`` names.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigError: it has no such classifier.
    """
    library, _, name = reference.partition(":")
    try:
        models = import_module(f"{library}.models")
    except ImportError as error:
        raise MissingExtraError(
            f"{reference} needs {library}, which is not installed; pip install {library}"
        ) from error
    if library == "torchvision":
        known = models.list_models(module=models)
        if name not in known:
            raise ConfigError(f"unknown network of torchvision {alternatives(name, known)}")
        return LibraryNetwork(reference, IMAGENET_MEAN, IMAGENET_STD)
    known = models.list_models()
    config = models.get_pretrained_cfg(name) if models.is_model(name.partition(".")[0]) else None
    if config is None and name not in known:
        raise ConfigError(f"unknown network of timm {alternatives(name, [*known, *models.list_pretrained()])}")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config is None else (tuple(config.mean), tuple(config.std))
    return LibraryNetwork(reference, mean, std)
