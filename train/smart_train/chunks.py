"""How many images are attacked together: as many as fit a memory that is the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn

from smart_common.errors import is_shortage
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode

CHUNK = 512
"""At most so many: more are hardly faster, on a core or on a GPU, and a run that is killed loses a chunk."""

MEMORY = 4 * 2**30
"""Bytes for what is kept for the gradients: what a GPU of 8 GB has to spare. It is fixed, since figures to the bit
depend on the chunk: one that fitted what is free would give other figures on another machine, or another day."""

MOST_IN_A_TENSOR = 32 * 2**20
"""Bytes that a tensor on a CPU stays below: larger ones glibc takes from the system each time (mallopt(3),
M_MMAP_THRESHOLD), page by page. Forward and back through resnet8 of width 16 at 3x32x32, on two threads, took 2.5 times
as long for 512 images at a time, whose largest tensors are just above, as for twice 256."""

_SMALL = 3 * 32 * 32  # numbers of an image; where no gradients are kept `CHUNK` such images are taken


def usual_chunk(
    networks: Sequence[nn.Module],
    input_shape: tuple[int, int, int],
    *,
    device: torch.device | str,
    most: int = CHUNK,
) -> int:
    """Return how many images are attacked together, a power of two up to ``most``, at least 1.

    Args:
        networks: whose gradients attacks follow, all at once where they follow a mean; none for attacks by scores only.
        input_shape: channels, height, width.
        device: where they will be attacked.
        most: a power of two.
    """
    if not networks:
        fit = CHUNK * _SMALL // prod(input_shape)
    else:
        kept = [_kept_for_one(network, input_shape) for network in networks]
        fit = MEMORY // max(1, sum(total for total, _ in kept))
        if torch.device(device).type == "cpu":
            fit = min(fit, (MOST_IN_A_TENSOR - 1) // max(1, *(largest for _, largest in kept)))
    return 1 << (min(most, max(1, fit)).bit_length() - 1)


def _kept_for_one(network: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps for the gradient of one more image: in all, and in one tensor."""
    with attack_mode(network):
        two, three = (_kept(network, count, input_shape) for count in (2, 3))  # of one image some copies are none
    total = sum(three) - sum(two)  # weights do not grow
    if len(two) != len(three):  # the network does other things with other numbers
        return total, total
    return total, max((large - small for small, large in zip(two, three, strict=True)), default=0)


def _kept(network: nn.Module, count: int, input_shape: tuple[int, int, int]) -> list[int]:
    """Return the bytes of each tensor that is kept for the gradient of ``count`` images, in the order of the pass."""
    storages: dict[int, Tensor] = {}  # held until all are counted, so that no address comes twice

    def note(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    device = next((parameter.device for parameter in network.parameters()), None)
    images = torch.zeros(count, *input_shape, device=device, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(images)
    return [tensor.untyped_storage().nbytes() for tensor in storages.values()]


@contextmanager
def enough_memory(chunk: int) -> Iterator[None]:
    """Run a block; raise ConfigError with the remedy if memory does not suffice for ``chunk`` images at a time."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise ConfigError(
            f"too little memory for {chunk} images at a time; use --chunk {max(1, chunk // 4)}, which changes the "
            f"random numbers too"
        ) from error
