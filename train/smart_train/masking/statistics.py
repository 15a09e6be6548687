"""The running statistics of batch norms: held still, or measured anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from smart_train.masking.passes import Out, Pass

_BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of ``module`` that have running statistics."""
    found = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    return [norm for norm in found if norm.running_mean is not None]


@contextmanager
def _momentum(norms: Sequence[_BatchNorm], momentum: float | None) -> Iterator[None]:
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = momentum
        yield
    finally:
        for norm, was in zip(norms, before, strict=True):
            norm.momentum = was


@contextmanager
def statistics_held(module: nn.Module) -> Iterator[None]:
    """Run a block in which passes in train mode leave the running statistics of ``module`` as they are."""
    norms = batch_norms(module)
    counts: list[Any] = [norm.num_batches_tracked for norm in norms]
    kept = [None if count is None else count.clone() for count in counts]
    with _momentum(norms, 0.0):
        try:
            yield
        finally:
            for count, was in zip(counts, kept, strict=True):
                if count is not None:
                    count.copy_(was)


@torch.no_grad()
def reestimate_(
    module: nn.Module, forward: Callable[[Sequence[Pass]], list[Out]], steps: Iterable[Sequence[Pass]]
) -> None:
    """Measure the running statistics of ``module`` anew, as the plain mean over the passes of ``steps``.

    Needed where weights were averaged or changed after training, which leaves the statistics those of other weights
    (Izmailov et al. 2018, arXiv 1803.05407, section 3.2). A path without a pass keeps its own.

    Args:
        module: whose batch norms are meant.
        forward: does the passes; ``module`` itself, or what wraps it.
        steps: all are made before the first is passed, since attacks need statistics.
    """
    norms, made, training = batch_norms(module), list(steps), module.training
    before = [{key: value.clone() for key, value in norm.state_dict().items()} for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    module.train()
    with _momentum(norms, None):
        for passes in made:
            forward(passes)
    module.train(training)
    for norm, old in zip(norms, before, strict=True):
        if norm.num_batches_tracked is None or int(norm.num_batches_tracked) == 0:
            norm.load_state_dict(old)
