"""What a mask mode is: where masks start and how they move; a row of ``MASK_MODES`` names the class of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from smart_common.errors import alternatives
from smart_common.lazy import load
from smart_train.choices import MASK_MODES
from smart_train.errors import ConfigError


@dataclass(frozen=True)
class Moment:
    """Where a training is, in optimiser steps.

    Attributes:
        step: the one that has just been done, 1 for the first.
        last: the one after which the masks are frozen.
        total: of the whole training.
        per_epoch: of an epoch.
    """

    step: int
    last: int
    total: int
    per_epoch: int


class Masks(ABC):
    """The masks of one kind on all paths, with what scores them: those of channels, or those of single weights.

    A place is a group or a layer, by its number in the order of the network. Scores have the shape of the mask there,
    and are 0 or more.

    Attributes:
        paths: their names.
        places: how many places there are.
        most_updates: how often masks may be chosen anew while they close; None for every step.
    """

    paths: tuple[str, ...]
    places: int
    most_updates: ClassVar[int | None] = None

    @property
    def each(self) -> Iterator[tuple[str, int]]:
        """Every path with every place."""
        return product(self.paths, range(self.places))

    @abstractmethod
    def mask(self, path: str, place: int) -> Tensor:
        """Return a mask, bool."""

    def used(self, place: int) -> Tensor:
        """Return what any path keeps at a place, bool."""
        return torch.stack([self.mask(path, place) for path in self.paths]).any(dim=0)

    @abstractmethod
    def first(self, path: str, place: int) -> Tensor:
        """Return scores to start from: drawn at random, or the magnitudes of weights that were trained before."""

    @abstractmethod
    def scores(self, path: str, place: int) -> Tensor:
        """Return what each channel or weight is worth to a path now."""

    @abstractmethod
    def keep(self, path: str, place: int, scores: Tensor) -> None:
        """Keep what scores highest, as many as the structure says."""

    @abstractmethod
    def shrink(self, path: str, place: int, progress: float, *, by: Callable[[str, int], Tensor]) -> None:
        """Keep what scores highest ``by`` a function of path and place, as many as stay at ``progress`` in [0, 1]."""

    @abstractmethod
    def replace(self, path: str, place: int, rate: float) -> None:
        """Replace the weakest of what a path keeps, ``rate`` of it, by what its gradients want most."""

    @abstractmethod
    def clear_(self, place: int, which: Tensor, *, optimizer: torch.optim.Optimizer) -> None:
        """Set weights and their momentum to zero: ``which`` (bool) of them, or those that read these channels."""


class MaskMode(ABC):
    """How masks are found.

    Attributes:
        name: as ``--masks`` takes it.
        summary: in a few words.
        origin: who it is by, for people who compare with a paper.
        closed: the fraction of training after which each mask keeps as much as the structure says.
        frozen: the one after which no mask moves any more.
        least_paths: how many paths it takes.
        leak: what a masked channel lets through while masks move, so that what it is worth shows; 0 where none comes
            back.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    origin: ClassVar[str]
    closed: ClassVar[float] = 0.0
    frozen: ClassVar[float] = 0.0
    least_paths: ClassVar[int] = 1
    leak: ClassVar[float] = 0.0

    def check(self, paths: tuple[str, ...]) -> None:
        """Raise ConfigError if a network with these paths is none for it."""
        if len(paths) < self.least_paths:
            raise ConfigError(
                f"masks {self.name} say what several paths have in common, and the network has {len(paths)} path; use "
                "gradual, regrow or static"
            )

    def start(self, masks: Masks) -> None:  # noqa: B027  # some modes start dense
        """Set the first masks; all are dense before. Those of channels are set first."""

    def move(self, masks: Masks, now: Moment, *, optimizer: torch.optim.Optimizer) -> bool:  # noqa: ARG002  # of others
        """Move the masks after an optimiser step, those of channels first; return whether any may have moved."""
        return False


def load_mode(name: str) -> MaskMode:
    """Return the mode that ``MASK_MODES`` has under ``name``.

    Raises:
        ConfigError: if there is no such mode.
    """
    if name not in MASK_MODES:
        raise ConfigError(f"unknown masks {alternatives(str(name), MASK_MODES)}")
    mode: MaskMode = load(MASK_MODES[name])()
    return mode


def disjoint(masks: Masks, place: int) -> None:
    """Give the paths masks with as little in common as their density allows: each prefers what fewer others have."""
    taken = torch.zeros_like(masks.mask(masks.paths[0], place), dtype=torch.float32)
    for path in masks.paths:
        scores = masks.first(path, place)
        below_one = scores / scores.max().clamp(min=torch.finfo(scores.dtype).tiny)
        masks.keep(path, place, below_one + 2 * (taken.max() - taken))
        taken += masks.mask(path, place)


def alike(masks: Masks, place: int) -> None:
    """Give all paths one mask."""
    scores = masks.first(masks.paths[0], place)
    for path in masks.paths:
        masks.keep(path, place, scores)
