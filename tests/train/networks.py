"""Small networks and images that several tests share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smart_train.architectures.resnet import ResNet
from smart_train.attacks import Attack
from smart_train.choices import Scope
from smart_train.data.images import ImageSet, make_image_set
from smart_train.data.source import Arrays
from smart_train.masking.network import SmartNetwork, convert
from smart_train.masking.structure import Structure
from smart_train.methods import load_method
from smart_train.methods.interface import Setup
from smart_train.training.config import TrainConfig


def resnet(*, width: int = 4, classes: int = 3, seed: int = 0) -> ResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(num_classes=classes, in_channels=1, blocks=(1, 1), width=width)


def smart(
    *,
    width: int = 4,
    structure: str = "channel",
    density: float | None = None,
    align: int = 1,
    scope: Scope = "block",
    seed: int = 0,
) -> SmartNetwork:
    return convert(
        resnet(width=width, seed=seed),
        example_input=torch.zeros(2, 1, 8, 8),
        structure=structure,
        density=density,
        align=align,
        scope=scope,
    )


def setup(
    method: str,
    *,
    options: Any = None,
    structure: Structure | None = None,
    attack: Attack | None = None,
    teacher: nn.Module | None = None,
) -> Setup:
    """What a training of 8x8 grey images in three classes is built with."""
    row = load_method(method)
    return Setup(
        example=torch.zeros(2, 1, 8, 8),
        structure=structure or Structure(density=row.default_density or 0.5, align=1),
        mean=[0.0],
        std=[1.0],
        num_classes=3,
        paths=row.paths,
        options=row.options() if options is None else options,
        attack=attack or Attack(eps=0.1, steps=2),
        seed=0,
        teacher=teacher,
    )


def image_set(*, train: int = 60, seed: int = 0) -> ImageSet:
    """Three classes of 8x8 grey images that are easy to tell apart: a bright third, and noise."""
    generator = np.random.default_rng(seed)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        images = generator.integers(0, 90, (count, 8, 8, 1))
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * label : 3 * label + 2] += 130
        return images.astype(np.uint8), labels

    train_images, train_labels = part(train)
    test_images, test_labels = part(21)
    arrays = Arrays(train_images, train_labels, test_images, test_labels)
    return make_image_set(arrays, kind="npz", where="made up")


@functools.cache
def few_digits() -> str:
    """What ``--data`` takes for 400 and 60 of the digits: with all, a training mostly attacks what it reports on."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  # a second

    digits = load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)[..., None]
    path = Path(os.environ["XDG_CACHE_HOME"]) / "few-digits.npz"  # that of this run, which removes it
    train, test = slice(400), slice(400, 460)
    np.savez(
        path,
        train_images=images[train],
        train_labels=digits.target[train],
        test_images=images[test],
        test_labels=digits.target[test],
        class_names=[str(digit) for digit in range(10)],
    )
    return f"npz:{path}"


def different(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Say in words how two sets of tensors differ; nothing where they are the same to the bit."""
    words = [f"{name} is in one only" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        a, b = first[name], second[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            words.append(f"{name}: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
        elif not torch.equal(a, b):
            words.append(f"{name}: {int((a != b).sum())}/{a.numel()} values differ")
    return words


def randomise_(network: nn.Module, *, seed: int) -> None:
    """Give batch norms statistics and parameters of their own, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


class Functional(nn.Module):
    """Layers by name and a forward in one line, for networks that only a test needs."""

    def __init__(self, forward: Callable[[Functional, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> Tensor:
        return self._forward(self, images)

    def call(self, name: str, features: Tensor) -> Tensor:
        output: Tensor = self.get_submodule(name)(features)
        return output


def tiny_config(**changes: object) -> TrainConfig:
    from smart_train import Attack, Structure  # noqa: PLC0415  # keeps the head of the file to networks

    options: dict[str, object] = {
        "model_arguments": {"width": 4},
        "structure": Structure(density=0.5, align=1),
        "attack": Attack(eps=0.1, steps=1),
        "epochs": 4,
        "batch_size": 16,
        "device": "cpu",
    }
    return TrainConfig(**(options | changes))  # type: ignore[arg-type]  # a test's own choices
