"""Small networks with the faults that networks of users' own have, and checkpoints of untrained ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smart_train import Checkpoint, SmartNetwork
from smart_train.checkpoint.format import Samples
from smart_train.choices import CUSTOM

SHAPE = (3, 16, 16)
CLASSES = 5


class Small(nn.Module):
    """Two convolutions, a batch norm, and whatever a user does before or after them."""

    def __init__(
        self,
        *,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        pooled: Callable[[Tensor], Tensor] = lambda features: features,
        after: Callable[[Tensor], Tensor] = lambda scores: scores,
        norm: nn.Module | None = None,
        num_classes: int = CLASSES,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 16, 3, 2, 1)
        self.second = nn.Conv2d(16, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16) if norm is None else norm
        self.head = nn.Linear(16, num_classes)
        self._before, self._pooled, self._after = before, pooled, after

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.second(self.first(self._before(images)).relu())).relu()
        return self._after(self.head(self._pooled(features.mean((2, 3)))))


@torch.no_grad()
def checkpoint_of(net: SmartNetwork) -> Checkpoint:
    """A checkpoint of ``net`` on noise, with random masks and the statistics of noise."""
    generator = torch.Generator().manual_seed(0)
    for path in net.path_names:
        for number, group in enumerate(net.groups):
            keep = torch.zeros(group.size, dtype=torch.bool)
            kept = net.structure.kept(group.size, bundle=group.bundle)
            keep[torch.randperm(group.size, generator=generator)[:kept]] = True
            net.set_mask(path, number, keep)
        for module in net.path(path).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        net.path(path).train()(torch.rand(32, *SHAPE, generator=generator))
    net.eval()
    pictures = torch.randint(0, 256, (8, *SHAPE[1:], SHAPE[0]), dtype=torch.uint8, generator=generator)
    samples = Samples(
        pictures, torch.zeros(8, dtype=torch.int64), {path: pictures.clone() for path in net.path_names}, 0.0, "none"
    )
    return Checkpoint(
        architecture=CUSTOM,
        arguments={},
        input_shape=SHAPE,
        class_names=tuple(f"class {i}" for i in range(CLASSES)),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        net=net,
        samples=samples,
        metrics={path: {} for path in net.path_names},
    )
