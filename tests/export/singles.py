"""Checkpoints of one path, as two of them make a bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from smart_train import Checkpoint
from smart_train.accuracy import to_tensor
from smart_train.architectures.build import build_network
from smart_train.checkpoint.format import Samples
from smart_train.masking.network import convert


def single(path: str, *, width: int, seed: int, density: float = 1.0, eps: float = 0.1, **changes: Any) -> Checkpoint:
    """An untrained network of one path, whose batch norms have seen its samples."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (24, 8, 8, 1), generator=generator, dtype=torch.uint8)
    plain = build_network(
        "resnet8", num_classes=3, in_channels=1, arguments={"width": width}, generator_seed=seed, factory=None
    )
    net = convert(plain, example_input=torch.zeros(1, 1, 8, 8), paths=(path,), density=density, align=2)
    net.path(path).train()
    with torch.no_grad():
        net.path(path)(to_tensor(images))
    net.eval()
    with torch.no_grad():
        labels = net.path(path)(to_tensor(images)).argmax(dim=1)
    samples = Samples(images=images, labels=labels, adversarial={path: images}, eps=eps, attack="pgd20x1")
    usual = Checkpoint(
        architecture="resnet8",
        arguments={"width": width},
        input_shape=(1, 8, 8),
        class_names=("a", "b", "c"),
        mean=(0.0,),
        std=(1.0,),
        net=net,
        samples=samples,
        training={"method": "standard" if seed == 0 else "trades", "data": {"kind": "npz", "digest": "00"}},
        metrics={path: {"clean_accuracy": 0.9 - seed / 10, "robust_accuracy": 0.1 + seed / 10}},
    )
    return replace(usual, **changes)
