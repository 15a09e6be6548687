"""A step of a training, taken apart for oracles: its tensors as arrays, and its gradient along one direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from smart_train.attacks import Attack
from smart_train.masking.network import SmartNetwork
from smart_train.methods.interface import Batch, Step, StepLoss, Training
from smart_train.training.loop import Trainer
from smart_train.training.results import EpochReport

Array = npt.NDArray[np.float64]
Tensors = dict[str, Array]


def some_batch(size: int = 8, *, number: int = 1, total: int = 1) -> Batch:
    """Grey 8x8 noise of three classes; drawn anew from the same seed, so that the attack's draws are the same."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(size, 1, 8, 8, generator=generator), torch.arange(size) % 3
    return Batch(images, labels, labels, generator=generator, number=number, total=total)


def half_masked_(net: SmartNetwork, *, seed: int = 0) -> SmartNetwork:
    """Keep a random half of every group's channels, another on each path."""
    generator = torch.Generator().manual_seed(seed)
    for path in net.path_names:
        for i, group in enumerate(net.groups):
            keep = torch.zeros(group.size, dtype=torch.bool)
            keep[torch.randperm(group.size, generator=generator)[: group.size // 2]] = True
            net.set_mask(path, i, keep)
    return net


def arrays(module: nn.Module) -> Tensors:
    """Return the state of ``module`` as float64 arrays, copies."""
    return {name: tensor.detach().double().numpy().copy() for name, tensor in module.state_dict().items()}


def masks(module: nn.Module) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the channel masks of ``module`` by layer."""
    found = ((name, getattr(layer, "mask", None)) for name, layer in module.named_modules())
    return {name: mask.numpy() for name, mask in found if isinstance(mask, torch.Tensor)}


def take(training: Training, given: Batch, attack: Attack) -> tuple[Step, StepLoss]:
    """Take a step in train mode, up to its loss."""
    training.modules.train()
    step = training.step(given, attack)
    return step, step.loss(training.modules(step.passes))


class _Stopped(Exception):  # noqa: N818  # no error: the plug is pulled
    pass


def run_until(trainer: Trainer, *, epoch: int) -> None:
    """Train to the end of ``epoch`` and stop there, without the report."""

    def stop(report: EpochReport) -> None:
        if report.row["epoch"] == epoch:
            raise _Stopped

    with pytest.raises(_Stopped):
        trainer.run(on_epoch=stop)


def check_slope(training: Training, total: torch.Tensor, oracle: Callable[[], float], *, length: float = 1e-7) -> None:
    """Check the loss, and its gradient along a random direction by a central difference of the ``oracle``.

    The oracle computes the loss in float64 from the parameters of ``training.modules`` as they then are. They are
    doubled for that and are float64 afterwards.
    """
    parameters = list(training.modules.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    training.modules.double()
    np.testing.assert_allclose(float(total.detach()), oracle(), rtol=2e-5)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum(float((g.double() * d).sum()) for g, d in zip(found, directions, strict=True) if g is not None)
    values: list[Any] = []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=sign * length)
        values.append(oracle())
    np.testing.assert_allclose(slope, (values[0] - values[1]) / (2 * length), rtol=1e-4)
