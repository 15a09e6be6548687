"""Which layers of a network a method looks at, found by one forward pass instead of by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.errors import NetworkError
from smart_train.masking.tracing import run_classifier

SHORTCUT = re.compile(r"shortcut|downsample|bn_sc")
"""What is in the names of the layers of a projection beside a block: ours, torchvision's and timm's, and OAT's."""


@dataclass(frozen=True)
class _Call:
    """A module that has just ended: its name, what it was given first and what it gave, by their shapes."""

    name: str
    module: nn.Module
    given: tuple[int, ...]
    gave: tuple[int, ...]


@torch.no_grad()
def _calls(network: nn.Module, example: Tensor) -> list[_Call]:
    """Return the calls of the modules inside of ``network``, in the order in which they end; in eval mode."""
    found: list[_Call] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                found.append(_Call(name, module, tuple(inputs[0].shape), tuple(output.shape)))

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in network.named_modules() if name]
    training = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        device = next((p.device for p in network.parameters()), example.device)
        run_classifier(network, example.to(device))
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training:
            module.training = flag
    return found


def classifier(network: nn.Module, example: Tensor) -> tuple[str, int]:
    """Return the name of the last linear layer, and the width of the vector that it is given.

    Args:
        network: images (N, C, H, W) to scores (N, classes).
        example: float (N, C, H, W), an input of it.

    Raises:
        NetworkError: if there is none, or it is not given a vector for each image.
    """
    last = next((one for one in reversed(_calls(network, example)) if isinstance(one.module, nn.Linear)), None)
    if last is None or len(last.given) != 2:
        raise NetworkError(
            f"{type(network).__name__} has no linear layer that is given a vector for each image and makes the scores, "
            "so its pooled features are not known; take a network that ends in one"
        )
    return last.name, last.given[1]


def last_map(network: nn.Module, example: Tensor) -> str:
    """Return the name of the last module to end whose output is (N, C, h, w) with more than one position.

    Raises:
        NetworkError: if there is none.
    """
    for one in reversed(_calls(network, example)):
        if len(one.gave) == 4 and one.gave[2] * one.gave[3] > 1:
            return one.name
    raise NetworkError(
        f"no module of {type(network).__name__} gives features (N, C, h, w) with more than one position for images of "
        f"{example.shape[3]}x{example.shape[2]}; take larger images, or a network that halves them less often"
    )


def last_stage(network: nn.Module, example: Tensor) -> dict[str, int]:
    """Return the batch norms of the last stage in the order of their calls, with their channels.

    Those are all whose output is as high and wide as that of the last one: they come after the last reduction. Without
    those of projections beside a block, which are known by their names.

    Raises:
        NetworkError: if there is none.
    """
    norms = [one for one in _calls(network, example) if isinstance(one.module, nn.BatchNorm2d)]
    found = {
        one.name: one.gave[1] for one in norms if one.gave[2:] == norms[-1].gave[2:] and not SHORTCUT.search(one.name)
    }
    if not found:
        raise NetworkError(
            f"{type(network).__name__} has no batch norms, whose outputs the two paths are to align; take a network "
            "with batch norms, or another method"
        )
    return found
