"""What depends on how far a training is: its learning rate; and random numbers, of which every use has its stream."""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch

from smart_train.choices import Schedule

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
    METHOD = 9
    SAMPLE = 10


def stream_seed(seed: int, stream: Stream, *numbers: int) -> int:
    """Return the seed of one use of ``seed``, in [0, 2**63); ``numbers`` tell its own uses apart."""
    return int(np.random.SeedSequence([seed, stream, *numbers]).generate_state(1, np.uint64)[0]) >> 1


def stream_generator(seed: int, stream: Stream, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the random numbers of one use of ``seed``."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, stream, *numbers))


def learning_rate(step: int, *, total: int, peak: float, schedule: Schedule = "cosine") -> float:
    """Return the learning rate of ``step`` out of 1 to ``total``.

    ``cosine`` rises for 5% of the steps, then falls to 0 as a cosine; ``cyclic`` rises to the middle and falls to 0,
    both in a line (Smith 2017, arXiv 1506.01186, as Wong et al. 2020, arXiv 2001.03994, use it); ``steps`` is the peak,
    a tenth of it from 75% and a hundredth from 90% (Madry et al. 2018 and many since).
    """
    if schedule == "cyclic":
        return peak * (1 - abs(2 * step / total - 1)) if step < total else peak / total
    if schedule == "steps":
        return peak * (1 if step <= 0.75 * total else 0.1 if step <= 0.9 * total else 0.01)
    warm = max(1, round(WARM_UP * total))
    if step <= warm:
        return peak * step / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
