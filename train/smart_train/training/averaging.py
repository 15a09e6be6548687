"""Means of the weights along a training, which are deployed in the place of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.training.refinements import Refinements


class WeightAverage:
    """The mean of the parameters and running statistics of ``modules``.

    Args:
        modules: what trains.
        refinements: which mean.
        steps: of an epoch.
        total: steps of the whole training.

    Attributes:
        first: the optimiser step after which there is a mean to deploy; 0 where none is asked for.
    """

    def __init__(self, modules: nn.Module, refinements: Refinements, *, steps: int, total: int) -> None:
        self._modules = modules
        self._kind, self._decay = refinements.average, refinements.ema_decay
        self._steps, self._begin = steps, int(refinements.swa_from * total)
        self.first = {"none": 0, "ema": 1, "swa": (self._begin // steps + 1) * steps}[self._kind]
        self._means = [tensor.detach().clone() for tensor in self._tensors] if self._kind != "none" else []
        self._count = 0

    @property
    def _tensors(self) -> list[Tensor]:
        """Parameters once each, then the buffers that are numbers."""
        buffers = [buffer for buffer in self._modules.buffers() if buffer.is_floating_point()]
        return [*self._modules.parameters(), *buffers]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step number ``step``, 1 for the first.

        ``ema`` starts with a short memory, min(decay, (1 + n) / (10 + n)) after n steps; ``swa`` takes the weights at
        the end of each epoch.
        """
        if self._kind == "ema":
            kept = min(self._decay, (1 + self._count) / (10 + self._count))
        elif self._kind == "swa" and step % self._steps == 0 and step > self._begin:
            kept = self._count / (self._count + 1)
        else:
            return
        self._count += 1
        for mean, tensor in zip(self._means, self._tensors, strict=True):
            mean.lerp_(tensor, 1 - kept)

    @contextmanager
    def applied(self) -> Iterator[bool]:
        """Run a block with the means in the place of the weights; it is told whether there are any yet."""
        if not self._count:
            yield False
            return
        tensors = self._tensors
        last = [tensor.detach().clone() for tensor in tensors]
        tracked = {name: buffer.clone() for name, buffer in self._modules.named_buffers()}
        _put(tensors, self._means)
        try:
            yield True
        finally:
            _put(tensors, last)
            for name, buffer in self._modules.named_buffers():
                buffer.copy_(tracked[name])  # counts of batches too

    def state(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {"count": self._count, "means": self._means}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned; ValueError if it is of other weights."""
        for mean, kept in zip(self._means, state["means"], strict=True):
            mean.copy_(kept)
        if type(state["count"]) is not int or state["count"] < 0:
            raise ValueError("a count of weights that is none")
        self._count = state["count"]


@torch.no_grad()
def _put(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
