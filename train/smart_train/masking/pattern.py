"""What a pattern of single weights is: which of a layer's weights a path keeps, and what that is good for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_devices import Target
from smart_train.masking.plan import strongest


class WeightPattern(ABC):
    """Which single weights of a layer masks may remove; a row of ``PATTERNS`` names the class.

    A pattern sees a weight as slicing leaves it, (out, in, ...), whose input channels are whole blocks: nothing of the
    channels that the path itself drops. The defaults are those of weights that go one by one, wherever they are.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The pattern as ``--structure`` takes it."""

    @property
    def own_density(self) -> float | None:
        """The fraction kept, in (0, 1), where the name says it; None where the user chooses."""
        return None

    @property
    def block(self) -> int:
        """How many consecutive input channels belong together: layers have a multiple of it."""
        return 1

    @property
    def for_speed(self) -> bool:
        """Whether some device skips these zeros: layers and devices that gain nothing are then better without them."""
        return False

    @classmethod
    def parse(cls, name: str) -> WeightPattern | None:
        """Return the pattern called ``name``; None if it is none of this class."""
        found = cls()
        return found if found.name == name else None

    def kept(self, shape: Sequence[int], *, density: float) -> int:
        """Return how many weights of a sliced weight of ``shape`` a path keeps at the end: a number that fits."""
        return max(1, math.ceil(density * math.prod(shape) - 1e-9))

    @abstractmethod
    def keep(self, scores: Tensor, *, count: int) -> Tensor:
        """Return the bool mask of the ``count`` weights that score highest within the pattern.

        Args:
            scores: float (out, in, ...), 0 or more.
            count: what :meth:`kept` gives, or while masks close any number above it: then as many as fit.
        """

    def replace(self, mask: Tensor, scores: Tensor, wanted: Tensor, *, count: int, rate: float) -> Tensor:
        """Return a mask of ``count`` weights with ``rate`` of ``mask`` replaced: low ``scores`` go, ``wanted`` come.

        All tensors are (out, in, ...), the numbers 0 or more.
        """
        moved = min(int(rate * count), mask.numel() - count)
        survivors = self.keep(scores.where(mask, -1.0), count=count - moved)
        return self.keep(wanted.where(~survivors, torch.inf), count=count)

    def holds(self, mask: Tensor, *, count: int) -> bool:
        """Whether the pattern allows every weight that ``mask`` keeps, where it keeps ``count``."""
        return not bool((mask & ~self.keep(mask.float(), count=count)).any())

    def why_slow(self, target: Target) -> str | None:  # noqa: ARG002  # a pattern of some devices asks
        """Return why these zeros make no layer of any network faster on ``target``; None where they may."""
        return "no engine skips single zeros"

    def in_blocks(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (out, in, ...) as (blocks, block): consecutive input channels, of one place of a filter."""
        return tensor.movedim(1, -1).reshape(-1, self.block)

    def from_blocks(self, blocks: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo :meth:`in_blocks`."""
        out, channels, *kernel = shape
        return blocks.reshape(out, *kernel, channels).movedim(-1, 1)


@dataclass(frozen=True)
class Unstructured(WeightPattern):
    """The strongest weights of each layer, wherever they are."""

    name = "unstructured"

    def keep(self, scores: Tensor, *, count: int) -> Tensor:
        """Return the bool mask of the ``count`` highest ``scores``; ties go to the lower index."""
        return strongest(scores.flatten(), count=count).view_as(scores)
