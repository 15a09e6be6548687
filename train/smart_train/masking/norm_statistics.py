"""Statistics of batch norms as the plain mean over some batches, where running means still remember others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def averaged_statistics(network: nn.Module) -> Iterator[None]:
    """Run a block in which ``network``, in train mode, forms the statistics of its batch norms anew.

    Afterwards they are the means over the passes of the block (momentum 1/k in the k-th), of which there must be one.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before, was = [norm.momentum for norm in norms], network.training
    network.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        network.train(was)
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
