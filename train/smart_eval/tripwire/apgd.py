"""Auto-PGD of Croce and Hein (2020, arXiv 2003.01690, algorithm 1) on any objective, L-infinity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
"""Of images (N, C, H, W): what is increased for each, (N,)."""

_MOMENTUM = 0.75
_LEAST_RISES = 0.75  # of the steps between two checkpoints


def apgd(objective: Objective, images: Tensor, *, eps: float, steps: int, generator: torch.Generator) -> Tensor:
    """Return for each image the one of greatest ``objective`` that was found: in [0, 1], within ``eps`` of it.

    Args:
        objective: finite, with a gradient.
        images: float (N, C, H, W) in [0, 1].
        eps: radius in pixel units.
        steps: gradient steps, 1 or more; the step length begins at 2 eps and halves where nothing is gained.
        generator: the random start comes from it, on the device of ``images``.
    """
    low, high = (images - eps).clamp_(0, 1), (images + eps).clamp_(0, 1)
    noise = torch.empty_like(images).uniform_(-eps, eps, generator=generator)
    here = (images + noise).clamp_(0, 1)
    value, gradient = _with_gradient(objective, here)
    best, best_value, best_gradient, before = here, value, gradient, here
    step = torch.full_like(value, 2 * eps)
    rises, last_best, last_step = torch.zeros_like(value), best_value.clone(), step.clone()
    checkpoints = _checkpoints(steps)
    since = 0
    for number in range(1, steps + 1):
        straight = _within(here + _each(step) * gradient.sign(), low, high)
        if number == 1:
            there = straight
        else:
            there = _within(here + _MOMENTUM * (straight - here) + (1 - _MOMENTUM) * (here - before), low, high)
        new, gradient = _with_gradient(objective, there)
        rises += new > value
        before, here, value = here, there, new
        better = _each(value > best_value)
        best, best_gradient = torch.where(better, here, best), torch.where(better, gradient, best_gradient)
        best_value = torch.maximum(value, best_value)
        since += 1
        if number in checkpoints:
            stalled = (rises < _LEAST_RISES * since) | ((step == last_step) & (best_value == last_best))
            last_step, last_best = step.clone(), best_value.clone()
            step = torch.where(stalled, step / 2, step)
            here, gradient = (
                torch.where(_each(stalled), of_best, of_here)
                for of_best, of_here in ((best, here), (best_gradient, gradient))
            )
            value = torch.where(stalled, best_value, value)
            rises, since = torch.zeros_like(value), 0
    return best


def _checkpoints(steps: int) -> set[int]:
    """Return after which steps the step length is looked at: section 3 of the paper."""
    parts, found = [0.0, 0.22], set()
    while parts[-1] <= 1:
        found.add(max(1, round(parts[-1] * steps)))
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06))
    return found


def _with_gradient(objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        value = objective(images)
        (gradient,) = torch.autograd.grad(value.sum(), images)
    return value.detach(), gradient


def _within(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(images, low), high)


def _each(values: Tensor) -> Tensor:
    """Return one value an image, (N,), in a shape that goes with images."""
    return values[:, None, None, None]
