"""Accuracy with its 95% interval, clean and under attack, of one path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smart_train.attacks import Attack, Model
from smart_train.chunks import usual_chunk
from smart_train.data.images import Split
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import PathNetwork

CHUNK = 256  # images at a time at most: enough to fill a core, little memory
Z_95 = 1.959964  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``total`` images; the interval is Wilson's (1927) at 95%."""

    correct: int
    total: int

    @classmethod
    def of(cls, right: npt.NDArray[np.bool_]) -> Accuracy:
        """Count the images that are ``right``, bool (N,)."""
        return cls(int(right.sum()), len(right))

    @property
    def value(self) -> float:
        """The fraction that is correct."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95% interval."""
        return wilson(self.value, self.total)

    @property
    def record(self) -> dict[str, Any]:
        """It as plain values, for reports."""
        return {"accuracy": self.value, "interval": list(self.interval), "correct": self.correct}

    def __str__(self) -> str:
        return f"{self.value:.3f}  [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


def wilson(p: float, n: int) -> tuple[float, float]:
    """Return Wilson's (1927) 95% interval of the fraction ``p`` of ``n`` trials."""
    z = Z_95
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


def tensors(split: Split, where: slice | npt.NDArray[np.int64], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return the images, float32 (N, C, H, W), and labels, int64 (N,), that ``where`` names."""
    images = to_tensor(torch.from_numpy(split.images[where]).to(device))
    return images, torch.from_numpy(split.labels[where]).to(device)


def some_indices(total: int, count: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return ``count`` different numbers below ``total``, int64 (count,), chosen by ``seed``.

    Raises:
        ConfigError: if there are fewer.
    """
    if not 1 <= count <= total:
        raise ConfigError(f"expected 1 to {total} examples, got {count}; the test split has no more")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()[:count]


def some_examples(split: Split, count: int, *, seed: int) -> Split:
    """Return ``count`` images of ``split``, chosen by ``seed``; raises as :func:`some_indices`."""
    chosen = some_indices(len(split), count, seed=seed)
    return Split(split.images[chosen], split.labels[chosen])


@torch.no_grad()
def classified_rightly(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Return which of ``images``, float (N, C, H, W), the model classifies correctly, bool (N,).

    NaN scores never count as correct.
    """
    scores = model(images)
    right: Tensor = (scores.argmax(dim=1) == labels) & ~scores.isnan().any(dim=1)
    return right


def accuracy(
    model: PathNetwork,
    split: Split,
    *,
    attack: Attack | None,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    done: Callable[[int], None] = lambda _: None,
) -> Accuracy:
    """Measure one path in float32 and eval mode.

    Under an attack an image counts if it is classified correctly before and after, as AutoAttack counts; any iterate
    of the attack may break it.

    Args:
        model: the path; its train/eval flag is as before afterwards.
        split: what to measure on.
        attack: made on this path; None for clean images.
        generator: of the attack's random starts, on ``device``.
        device: where the model is.
        done: called with the number of images of each finished chunk.
    """
    right = 0
    height, width, channels = split.images.shape[1:]
    chunk = usual_chunk([model], (channels, height, width), device=device, most=CHUNK)
    with attack_mode(model):
        for start in range(0, len(split), chunk):
            images, labels = tensors(split, slice(start, start + chunk), device)
            correct = classified_rightly(model, images, labels)
            if attack is not None and correct.any():
                images, labels = images[correct], labels[correct]  # the others are wrong already
                correct = classified_rightly(
                    model, attack.run(model, images, labels, generator=generator, early_stop=True), labels
                )
            right += int(correct.sum())
            done(len(split.labels[start : start + chunk]))
    return Accuracy(right, len(split))


def evaluate_path(
    model: PathNetwork,
    split: Split,
    *,
    attack: Attack,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    done: Callable[[int], None] = lambda _: None,
) -> PathAccuracy:
    """Measure one path clean and under ``attack``; see :func:`accuracy`, ``done`` counts the attacked images."""
    return PathAccuracy(
        clean=accuracy(model, split, attack=None, generator=generator, device=device),
        robust=accuracy(model, split, attack=attack, generator=generator, device=device, done=done),
    )
