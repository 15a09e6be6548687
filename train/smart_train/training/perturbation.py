"""Adversarial weight perturbation (AWP; Wu et al. 2020, arXiv 2004.05884): a step is taken where the loss is worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from smart_train.masking.layers import Expert
from smart_train.masking.statistics import statistics_held

_LEAST = 1e-20  # of a gradient's norm: where it is zero nothing is moved


@contextmanager
def perturbed(modules: nn.Module, loss: Callable[[], Tensor], *, size: float) -> Iterator[None]:
    """Run a block with every weight tensor moved up the gradient of ``loss`` by ``size`` of its own norm.

    Weights are the parameters with more than one axis, equation 8 of the paper with one step. The move is taken back
    afterwards by as much, so that an optimiser's step inside the block stays. Running statistics do not move for it,
    nor do masks learn from it.
    In a data-parallel training each process moves by the gradient of its own images.
    """
    weights: list[Tensor] = [p for p in modules.parameters() if p.dim() > 1 and p.requires_grad]
    with statistics_held(modules):
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    for module in modules.modules():
        if isinstance(module, Expert):
            module.take_effective_gradient()  # those of the step itself count
    moves: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is None:
                continue
            move = gradient * (size * weight.norm() / (gradient.norm() + _LEAST))
            weight.add_(move)
            moves.append((weight, move))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, move in moves:
                weight.sub_(move)
