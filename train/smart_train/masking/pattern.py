"""What a pattern of single weights is: which of a layer's weights a path keeps, and what that is good for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_devices import Profile, Target
from smart_train.errors import ConfigError
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

    def alignment(self, profile: Profile) -> int:  # noqa: ARG002  # a pattern of some devices asks
        """Return what channels should be a multiple of, so that ``profile`` can skip these zeros; 1 if it never can."""
        return 1

    def least_channels(self, profile: Profile) -> int:  # noqa: ARG002  # as above
        """Return how many channels a layer must have, in and out, to gain from these zeros on ``profile``."""
        return 1

    def is_too_narrow(self, channels: int, *, least: int) -> bool:  # noqa: ARG002  # as above
        """Whether a layer of ``channels`` keeps all of its weights, where ``least`` are wanted for speed."""
        return False

    def kept_share(self, weight: Tensor) -> float:  # noqa: ARG002  # as above
        """Return the fraction of the magnitude of ``weight``, (out, in, ...), that the best mask keeps.

        Raises:
            ConfigError: it does not depend on which channels share a block.
        """
        raise self._order_gains_nothing()

    def kept_magnitude(self, columns: Tensor) -> Tensor:  # noqa: ARG002  # as above
        """Return how much of each of ``columns`` (blocks, block, rows), 0 or more, the best mask keeps: (blocks,).

        Raises:
            ConfigError: as `kept_share` does.
        """
        raise self._order_gains_nothing()

    def _order_gains_nothing(self) -> ConfigError:
        return ConfigError(f"channels in another order gain nothing for {self.name}; leave --permute out")

    def why_refused(self, target: Target) -> str | None:  # noqa: ARG002  # as above
        """Return why an export for ``target`` should be refused; None where zeros cost it nothing that was promised."""
        return None

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
