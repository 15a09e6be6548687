"""What depends on how far a training is: its learning rate; and random numbers, of which every use has its stream."""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch

WARM_UP = 0.05  # fraction of training over which the learning rate rises from 0


class Stream(IntEnum):
    """The uses of a training's seed, which never overlap."""

    INIT = 0
    ORDER = 1
    ATTACK = 2
    MASKS = 3
    VALIDATION = 4
    SAMPLES = 5
    TEST = 6
    AUGMENT = 7
    PERMUTE = 8


def stream_seed(seed: int, stream: Stream) -> int:
    """Return the seed of one use of ``seed``, in [0, 2**63)."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]) >> 1


def stream_generator(seed: int, stream: Stream, *, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the random numbers of one use of ``seed``."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, stream))


def learning_rate(step: int, *, total: int, peak: float) -> float:
    """Return the learning rate of ``step`` out of 1 to ``total``: a linear rise to ``peak``, then a cosine to 0."""
    warm = max(1, round(WARM_UP * total))
    if step <= warm:
        return peak * step / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
