"""The smallest real checkpoint: an untrained network with masks at their target and four samples."""

from __future__ import annotations

from pathlib import Path

import torch

from smart_train import Checkpoint, convert, save_checkpoint
from smart_train.architectures.build import build_network
from smart_train.checkpoint.format import Samples

_SIDE, _WIDTH = 4, 2
_CLASSES = ("a", "b", "c")


def write_checkpoint(path: Path) -> None:
    """Write it to ``path``."""
    arguments = {"width": _WIDTH}
    net = convert(
        build_network("resnet8", num_classes=len(_CLASSES), in_channels=1, arguments=arguments, generator_seed=0),
        example_input=torch.zeros(2, 1, _SIDE, _SIDE),
        align=1,
    )
    for path_name in net.path_names:
        for i, group in enumerate(net.groups):
            net.set_mask(path_name, i, torch.arange(group.size) < net.structure.kept(group.size))
    images = torch.arange(4 * _SIDE**2, dtype=torch.uint8).reshape(4, _SIDE, _SIDE, 1)
    figures = {"clean_accuracy": 0.9, "clean_interval": [0.8, 1.0], "attack": "pgd20x1", "eps": 0.1, "examples": 20}
    checkpoint = Checkpoint(
        architecture="resnet8",
        arguments=arguments,
        input_shape=(1, _SIDE, _SIDE),
        class_names=_CLASSES,
        mean=(0.5,),
        std=(0.25,),
        net=net,
        samples=Samples(
            images=images,
            labels=torch.tensor([0, 1, 2, 0]),
            adversarial=dict.fromkeys(net.path_names, images + 25),
            eps=0.1,
            attack="pgd20x1",
        ),
        training={"method": "smart", "data": {"kind": "digits", "train": 8}, "history": [{"epoch": 1, "loss": 0.5}]},
        metrics={name: dict(figures) for name in net.path_names},
    )
    save_checkpoint(checkpoint, path)
