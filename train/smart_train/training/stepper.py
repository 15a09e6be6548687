"""One optimiser step, with what refinements add to it; and the averaged weights that steps leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning_fabric
from torch import Tensor

from smart_train.masking.accounting import zero_unused_
from smart_train.masking.statistics import reestimate_
from smart_train.methods.interface import Batch, StepLoss
from smart_train.training.batches import Batches
from smart_train.training.config import TrainConfig
from smart_train.training.perturbation import perturbed
from smart_train.training.schedule import learning_rate
from smart_train.training.state import Parts

STATISTICS_IMAGES = 1000  # training images by which the batch norms of averaged weights are measured


class Stepper:
    """Does the steps of a training.

    Args:
        parts: what moves.
        batches: of the training.
        config: of the training.
        fabric: its autocast and backward pass.
        modules, optimizer: those of ``parts`` as ``fabric`` wrapped them.
    """

    def __init__(
        self,
        parts: Parts,
        batches: Batches,
        config: TrainConfig,
        *,
        fabric: lightning_fabric.Fabric,
        modules: Any,
        optimizer: Any,
    ) -> None:
        self._parts, self._batches, self._config = parts, batches, config
        self._fabric, self._wrapped, self._optimizer = fabric, modules, optimizer
        self._modules = parts.training.modules

    def learning_rate(self, number: int) -> float:
        """Return that of step ``number``, 1 for the first."""
        config = self._config
        return learning_rate(number, total=self._batches.total, peak=config.learning_rate, schedule=config.schedule)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Do one step and return the parts of its loss; the learning rate and the masks follow the batch's number."""
        parts = self._parts
        self._modules.train()
        for group in parts.optimizer.param_groups:
            group["lr"] = self.learning_rate(batch.number)
        with self._fabric.autocast():
            step = parts.training.step(batch, self._config.attack)

        def lost(modules: Any) -> StepLoss:
            with self._fabric.autocast():
                return step.loss(modules(step.passes))

        # Not through what Fabric wrapped, which lets no other backward pass than its own through in mixed precision.
        with self._perturbed(lambda: lost(self._modules).total, number=batch.number):
            loss = lost(self._wrapped)
            self._optimizer.zero_grad()
            self._fabric.backward(loss.total)
            parts.learner.after_backward()
            self._optimizer.step()
        parts.learner.after_step(batch.number, optimizer=parts.optimizer)
        parts.average.update(batch.number)
        return loss.parts

    def _perturbed(self, loss: Callable[[], Tensor], *, number: int) -> AbstractContextManager[None]:
        wanted = self._config.refinements
        if not wanted.awp or number <= (wanted.awp_from - 1) * self._batches.steps:
            return nullcontext()
        return perturbed(self._modules, loss, size=wanted.awp)

    @contextmanager
    def averaged(self, *, epoch: int) -> Iterator[None]:
        """Run a block after ``epoch`` with the averaged weights, if there are any, and batch norms that fit them."""
        with self._parts.average.applied() as averaged:
            if averaged:
                attack = self._config.attack
                sample = self._batches.sample(STATISTICS_IMAGES, epoch=epoch)
                steps = (self._parts.training.step(batch, attack).passes for batch in sample)
                reestimate_(self._modules, self._modules, steps)
                if epoch * self._batches.steps >= self._parts.learner.frozen_from:
                    zero_unused_(self._parts.training.net)  # the mean remembers what is no path's any more
            yield
