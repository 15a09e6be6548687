"""What a training learns from, on its device: shuffled, augmented, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_train.accuracy import to_tensor
from smart_train.data.images import Split
from smart_train.methods.interface import Batch
from smart_train.training.config import TrainConfig
from smart_train.training.schedule import Stream, stream_generator


@dataclass(frozen=True)
class Generators:
    """The random numbers of batches, which a resumed training goes on with: of the order, of attacks, of augmenting."""

    order: torch.Generator
    attack: torch.Generator
    augment: torch.Generator


class Batches:
    """The training images of ``split`` in batches as ``config`` says.

    Attributes:
        steps: batches of an epoch; images that do not fill one wait for the next.
        total: batches of the whole training.
    """

    def __init__(self, split: Split, config: TrainConfig, *, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._images = torch.from_numpy(split.images).to(device)
        self._labels = torch.from_numpy(split.labels).to(device)
        self.generators = Generators(
            order=stream_generator(config.seed, Stream.ORDER),
            attack=stream_generator(config.seed, Stream.ATTACK, device=device),
            augment=stream_generator(config.seed, Stream.AUGMENT, device=device),
        )
        self.steps = len(split) // config.batch_size
        self.total = self.steps * config.epochs

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, 1 for the first, from the generators as they stand."""
        size = self._config.batch_size
        order = torch.randperm(len(self._labels), generator=self.generators.order).to(self._device)
        for i in range(self.steps):
            chosen = order[i * size : (i + 1) * size]
            step = (number - 1) * self.steps + i + 1
            yield self.batch(self._images[chosen], self._labels[chosen], number=step)

    def batch(self, images: Tensor, labels: Tensor, *, number: int, generators: Generators | None = None) -> Batch:
        """Return a step's batch of ``images``, uint8 (N, H, W, C), and ``labels``, int64 (N,), both on the device."""
        generators = generators or self.generators
        return Batch(
            to_tensor(self._config.augmentation.apply(images, generator=generators.augment)),
            labels,
            labels,
            generator=generators.attack,
            number=number,
            total=self.total,
        )

    def sample(self, images: int, *, epoch: int) -> Iterator[Batch]:
        """Yield batches of at least ``images`` images, or of all, chosen by the seed and ``epoch`` alone."""
        streams = {
            name: stream_generator(self._config.seed, Stream.SAMPLE, epoch, device=device)
            for name, device in (("order", "cpu"), ("attack", self._device), ("augment", self._device))
        }
        generators, size = Generators(**streams), self._config.batch_size
        order = torch.randperm(len(self._labels), generator=generators.order).to(self._device)
        count = min(-(-images // size), self.steps)
        for i in range(count):
            chosen = order[i * size : (i + 1) * size]
            number = min((epoch - 1) * self.steps + 1, self.total)
            yield self.batch(self._images[chosen], self._labels[chosen], number=number, generators=generators)
