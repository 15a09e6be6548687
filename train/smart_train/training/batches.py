"""What a training learns from, on its device: shuffled, augmented, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_train.accuracy import to_tensor
from smart_train.data.images import Split
from smart_train.errors import ConfigError
from smart_train.methods.interface import Batch
from smart_train.training.config import TrainConfig
from smart_train.training.schedule import Stream, stream_generator
from smart_train.training.targets import Targets


@dataclass(frozen=True)
class Generators:
    """The random numbers of batches, which a resumed training goes on with: of the order, of attacks, of augmenting."""

    order: torch.Generator
    attack: torch.Generator
    augment: torch.Generator


class Batches:
    """The training images of ``split`` in batches as ``config`` says.

    An epoch is counted by the images of ``split``, whatever share of a batch is from ``extra``: those are drawn with
    replacement (Gowal et al. 2021, arXiv 2110.09468).

    Attributes:
        steps: batches of an epoch; images that do not fill one wait for the next.
        total: batches of the whole training.

    Raises:
        ConfigError: if the share of ``extra`` is less than one image of a batch.
    """

    def __init__(
        self, split: Split, config: TrainConfig, *, targets: Targets, device: torch.device, extra: Split | None = None
    ) -> None:
        self._config = config
        self._targets = targets
        self._device = device
        images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
        if extra is not None:  # else no copy: they may be mapped from a file larger than memory
            images = torch.cat([images, torch.from_numpy(extra.images)])
            labels = torch.cat([labels, torch.from_numpy(extra.labels)])
        self._images, self._labels = images.to(device), labels.to(device)
        self._count = len(split)
        share, size = config.refinements.extra_share, config.batch_size
        self._from_extra = 0 if extra is None else round(share * size)
        if extra is not None and not self._from_extra:
            raise ConfigError(f"a share of {share:g} is no extra image in a batch of {size}; raise --extra-share")
        self.generators = Generators(
            order=stream_generator(config.seed, Stream.ORDER),
            attack=stream_generator(config.seed, Stream.ATTACK, device=device),
            augment=stream_generator(config.seed, Stream.AUGMENT, device=device),
        )
        self.steps = len(split) // config.batch_size
        self.total = self.steps * config.epochs

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, 1 for the first, from the generators as they stand."""
        for i, chosen in enumerate(self._chosen(self.steps, self.generators.order)):
            step = (number - 1) * self.steps + i + 1
            yield self.batch(self._images[chosen], self._labels[chosen], number=step)

    def _chosen(self, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the numbers of the images of each of ``steps`` batches of an epoch."""
        size, extra = self._config.batch_size, len(self._labels) - self._count
        own = size - self._from_extra
        order = torch.randperm(self._count, generator=generator)
        for i in range(steps):
            chosen = order[i * own : (i + 1) * own]
            if self._from_extra:
                drawn = self._count + torch.randint(extra, (self._from_extra,), generator=generator)
                chosen = torch.cat([chosen, drawn])[torch.randperm(size, generator=generator)]
            yield chosen.to(self._device)

    def batch(self, images: Tensor, labels: Tensor, *, number: int, generators: Generators | None = None) -> Batch:
        """Return a step's batch of ``images``, uint8 (N, H, W, C), and ``labels``, int64 (N,), both on the device."""
        generators = generators or self.generators
        augmented = to_tensor(self._config.augmentation.apply(images, generator=generators.augment))
        return Batch(
            *self._targets(augmented, labels, generator=generators.augment),
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
        generators = Generators(**streams)
        number = min((epoch - 1) * self.steps + 1, self.total)
        steps = min(-(-images // self._config.batch_size), self.steps)
        for chosen in self._chosen(steps, generators.order):
            yield self.batch(self._images[chosen], self._labels[chosen], number=number, generators=generators)
