"""Accuracy with its 95% interval, clean and under attack, of one path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_train.attacks import Attack
from smart_train.data.images import Split
from smart_train.errors import ConfigError
from smart_train.methods.step import fixed
from smart_train.network import PathNetwork

CHUNK = 256  # images at a time: enough to fill a core, little memory
Z_95 = 1.959964  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``total`` images; the interval is Wilson's (1927) at 95%."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        """The fraction that is correct."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95% interval."""
        n, p, z = self.total, self.value, Z_95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))  # rounding may put an end past p


@dataclass(frozen=True)
class PathAccuracy:
    """One path's accuracy on clean images and under an attack made on that very path."""

    clean: Accuracy
    robust: Accuracy


def to_tensor(images: Tensor) -> Tensor:
    """Turn uint8 (N, H, W, C) into float32 (N, C, H, W) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(255).contiguous()


def some_examples(split: Split, count: int, *, seed: int) -> Split:
    """Return ``count`` images of ``split``, chosen by ``seed``.

    Raises:
        ConfigError: if there are not so many.
    """
    if not 1 <= count <= len(split):
        raise ConfigError(f"expected 1 to {len(split)} examples, got {count}; the test split has no more")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).numpy()[:count]
    return Split(split.images[order], split.labels[order])


def _nothing(_: int) -> None:
    return


@torch.no_grad()
def _correct(model: PathNetwork, images: Tensor, labels: Tensor) -> Tensor:
    right: Tensor = model(images).argmax(dim=1) == labels
    return right


def accuracy(
    model: PathNetwork,
    split: Split,
    *,
    attack: Attack | None,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    done: Callable[[int], None] = _nothing,
) -> Accuracy:
    """Measure one path in float32 and eval mode.

    Under an attack an image counts if it is classified correctly before and after, as AutoAttack counts.

    Args:
        model: the path; its train/eval flag is as before afterwards.
        split: what to measure on.
        attack: made on this path; None for clean images.
        generator: of the attack's random starts, on ``device``.
        device: where the model is.
        done: called with the number of images of each finished chunk.
    """
    right = 0
    with fixed(model):
        for start in range(0, len(split), CHUNK):
            images = to_tensor(torch.from_numpy(split.images[start : start + CHUNK]).to(device))
            labels = torch.from_numpy(split.labels[start : start + CHUNK]).to(device)
            correct = _correct(model, images, labels)
            if attack is not None:
                adversarial = attack.perturb(model, images, labels, generator=generator)
                correct &= _correct(model, adversarial, labels)
            right += int(correct.sum())
            done(len(labels))
    return Accuracy(right, len(split))


def evaluate_path(
    model: PathNetwork,
    split: Split,
    *,
    attack: Attack,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    done: Callable[[int], None] = _nothing,
) -> PathAccuracy:
    """Measure one path clean and under ``attack``; see :func:`accuracy`, ``done`` counts the attacked images."""
    return PathAccuracy(
        clean=accuracy(model, split, attack=None, generator=generator, device=device),
        robust=accuracy(model, split, attack=attack, generator=generator, device=device, done=done),
    )
