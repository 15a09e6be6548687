"""Processes that share the chunks of one evaluation: ``torchrun --nproc-per-node 2 --no-python smart-eval ...``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shards:
    """This process among those that share the work, each of which takes whole chunks.

    Attributes:
        rank: its number, from 0; the first one speaks.
        world: how many there are.
        device: where it computes, None for what the user chose.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def takes(self, chunk: int) -> bool:
        """Whether a chunk, by its number, is this process's."""
        return chunk % self.world == self.rank

    def wait(self) -> None:
        """Return when all have called it."""
        if self.world > 1:
            distributed.barrier()

    def united(self, own: Mapping[str, _T]) -> dict[str, _T]:
        """Return what all processes have, the same for each; called by all of them."""
        if self.world == 1:
            return dict(own)
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, dict(own))
        return {key: value for part in parts for key, value in part.items()}


ALONE = Shards()


def join_shards(accelerator: str) -> Shards:
    """Return this process's part in what torchrun has started, `ALONE` if it has not.

    Args:
        accelerator: ``cpu`` or ``cuda``, one GPU a process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or world == 1:
        return ALONE
    import lightning_fabric  # noqa: PLC0415  # takes a second, and few evaluations are shared

    local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = lightning_fabric.Fabric(
        accelerator=accelerator, devices=local, num_nodes=world // local, strategy="ddp", precision="32-true"
    )
    fabric.launch()
    return Shards(rank=fabric.global_rank, world=fabric.world_size, device=fabric.device)
