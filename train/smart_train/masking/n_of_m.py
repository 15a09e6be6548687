"""N of every M consecutive input channels: the one pattern that hardware skips zeros in, with 2:4."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smart_devices import Profile, Target
from smart_devices.device_profile import SPARSE_GAIN_CHANNELS
from smart_train.masking.pattern import WeightPattern
from smart_train.masking.plan import strongest

MAX_M = 16
_NAME = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")


@dataclass(frozen=True)
class NOfM(WeightPattern):
    """Of every ``m`` consecutive input channels ``n`` weights stay, for each filter and kernel position.

    With 2:4 this is what sparse tensor cores and TensorRT want (TensorRT developer guide, "Structured Sparsity": "for
    each output channel and for each spatial pixel in the kernel weights, every four input channels must have at least
    two zeros"; arXiv 2104.08378).
    """

    n: int
    m: int

    @property
    def name(self) -> str:
        """``2:4``, for one."""
        return f"{self.n}:{self.m}"

    @property
    def own_density(self) -> float:
        """N/M."""
        return self.n / self.m

    @property
    def block(self) -> int:
        """M."""
        return self.m

    @classmethod
    def parse(cls, name: str, *, max_m: int = MAX_M) -> NOfM | None:
        """Return what ``N:M`` with 1 <= N < M <= ``max_m`` (99 at most) names; None if it is anything else."""
        found = _NAME.fullmatch(name)
        n, m = map(int, found.groups()) if found else (0, 0)
        return cls(n, m) if 0 < n < m <= max_m else None

    def kept(self, shape: Sequence[int], *, density: float) -> int:  # noqa: ARG002  # N/M by definition
        """Return N of each block, whatever the density is, which in ``channel+N:M`` is that of the channels."""
        return math.prod(shape) // self.m * self.n

    def keep(self, scores: Tensor, *, count: int) -> Tensor:
        """Return the bool mask of the N highest scores of each block and, up to ``count``, of the others the highest.

        Ties go to the lower index.
        """
        return self.from_blocks(self._keep(self.in_blocks(scores), count=count), scores.shape)

    def _keep(self, scores: Tensor, *, count: int) -> Tensor:
        keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        keep.scatter_(1, torch.argsort(scores, dim=1, descending=True, stable=True)[:, : self.n], True)
        more = count - self.n * len(scores)
        if more > 0:
            keep |= strongest(scores.flatten(), among=~keep.flatten(), count=more).view_as(keep)
        return keep

    def replace(self, mask: Tensor, scores: Tensor, wanted: Tensor, *, count: int, rate: float) -> Tensor:
        """Return a mask with at most one weight a block replaced, by one of the same block.

        Channels that have moved put other weights together: a block may have more or fewer of the kept ones than N, so
        what ``mask`` keeps comes first.
        """
        shape = mask.shape
        mask, scores, wanted = self.in_blocks(mask), self.in_blocks(scores), self.in_blocks(wanted)
        later = scores - (scores.max() + 1)  # below every score
        keep = self._keep(torch.where(mask, scores, later), count=count)
        weakest = torch.where(keep, scores, torch.inf).min(dim=1)
        grown = torch.where(keep, -torch.inf, wanted).argmax(dim=1)
        moved = strongest(-weakest.values, count=min(int(rate * count), len(mask)))
        rows = torch.nonzero(moved).flatten()
        keep[rows, weakest.indices[rows]] = False
        keep[rows, grown[rows]] = True
        return self.from_blocks(keep, shape)

    def holds(self, mask: Tensor, *, count: int) -> bool:  # noqa: ARG002  # each block has its own
        """Whether ``mask`` keeps at most N of each block."""
        return bool((self.in_blocks(mask).sum(dim=1) <= self.n).all())

    def alignment(self, profile: Profile) -> int:
        """Return what sparse arithmetic in fp32 and fp16 wants there."""
        return max(profile.alignment(precision, sparse=True) for precision in ("fp32", "fp16"))

    def least_channels(self, profile: Profile) -> int:
        """Return from how many channels sparse tensor cores win; 1 where there are none."""
        return SPARSE_GAIN_CHANNELS if profile.sparse_tensor_cores.value else 1

    def is_too_narrow(self, channels: int, *, least: int) -> bool:
        """Whether ``channels`` are fewer than ``least``."""
        return channels < least

    def kept_share(self, weight: Tensor) -> float:
        """Return the share of the N greatest of each block."""
        rows = self.in_blocks(weight.detach().abs())
        total = float(rows.sum())
        return float(rows.topk(self.n, dim=1).values.sum()) / total if total else 1.0

    def kept_magnitude(self, columns: Tensor) -> Tensor:
        """Return the sum of the N greatest of each block, over all rows.

        They rise to the end of each block by exchanges of whole rows: a tenth of the time of ``topk`` over a short
        axis, and this is what the search for an order spends its time on.
        """
        rest = list(columns.unbind(dim=1))
        largest = []
        for _ in range(self.n):
            for i in range(len(rest) - 1):
                rest[i], rest[i + 1] = torch.minimum(rest[i], rest[i + 1]), torch.maximum(rest[i], rest[i + 1])
            largest.append(rest.pop())
        return torch.stack(largest).sum(dim=(0, 2))

    def why_refused(self, target: Target) -> str | None:
        """Return why these zeros give no speed, which is all they are for."""
        return self.why_slow(target)

    def why_slow(self, target: Target) -> str | None:
        """Return why these zeros make no layer of any network faster on ``target``; None where they may."""
        cores = target.profile.sparse_tensor_cores.value
        if not cores:
            known = "has no sparse tensor cores" if cores is False else "is not known to have sparse tensor cores"
            return f"{target.name} {known}"
        return None if self == TWO_FOUR else f"sparse tensor cores know {TWO_FOUR.name} only, not {self.name}"


TWO_FOUR = NOfM(2, 4)
"""The one pattern that sparse tensor cores have."""
