"""How many images are attacked together: as many as fit a memory that is the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn

from smart_train.errors import ConfigError
from smart_train.methods.step import fixed

CHUNK = 512
"""At most so many: more are hardly faster, on a core or on a GPU, and a run that is killed loses a chunk."""

MEMORY = 4 * 2**30
"""Bytes for what is kept for the gradients: what a GPU of 8 GB has to spare. It is fixed, since figures to the bit
depend on the chunk: one that fitted what is free would give other figures on another machine, or another day."""

_SMALL = 3 * 32 * 32  # numbers of an image; where no gradients are kept `CHUNK` such images are taken


def usual_chunk(networks: Sequence[nn.Module], input_shape: tuple[int, int, int], *, most: int = CHUNK) -> int:
    """Return how many images are attacked together, a power of two up to ``most``, at least 1.

    Args:
        networks: whose gradients attacks follow, all at once where they follow a mean; none for attacks by scores only.
        input_shape: channels, height, width.
        most: a power of two.
    """
    if not networks:
        fit = CHUNK * _SMALL // prod(input_shape)
    else:
        fit = MEMORY // max(1, sum(_kept_for_one(network, input_shape) for network in networks))
    return 1 << (min(most, max(1, fit)).bit_length() - 1)


def _kept_for_one(network: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the bytes that a forward pass keeps for the gradient of one more image, weights left out."""
    with fixed(network):
        one, two = (_kept(network, count, input_shape) for count in (1, 2))
    return two - one


def _kept(network: nn.Module, count: int, input_shape: tuple[int, int, int]) -> int:
    storages: dict[int, Tensor] = {}  # held until all are counted, so that no address comes twice

    def note(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    device = next((parameter.device for parameter in network.parameters()), None)
    images = torch.zeros(count, *input_shape, device=device, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(images)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@contextmanager
def enough_memory(chunk: int) -> Iterator[None]:
    """Run a block; raise ConfigError with the remedy if memory does not suffice for ``chunk`` images at a time."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one; of a CPU only the words tell
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise ConfigError(
            f"expected memory for {chunk} images at a time, got too little; use --chunk {max(1, chunk // 4)}, which "
            f"changes the random numbers too"
        ) from error
