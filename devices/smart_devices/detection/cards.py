"""Which NVIDIA graphics cards a PC has.

Not for Jetsons: a Jetson's library knows neither memory nor clocks, and answering it does not make a machine a PC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smart_devices.nvml import Gpu, open_gpus

_MEMORY_TOLERANCE = 0.125  # a 16 GB card was seen to report 15 GiB: the driver keeps some


@dataclass(frozen=True)
class Card:
    """One graphics card; what it does not tell is None.

    Attributes:
        name: As in ``NVIDIA GeForce RTX 4090``.
        compute_capability: As in ``8.9``.
        memory_gib: Its memory in GiB, a little less than it is sold with.
    """

    name: str
    compute_capability: str | None
    memory_gib: float | None

    def may_have(self, memory_gb: float | None) -> bool:
        """Say whether its memory can be that of a card sold with ``memory_gb``; yes while either is unknown."""
        if memory_gb is None or self.memory_gib is None:
            return True
        return abs(self.memory_gib - memory_gb) <= _MEMORY_TOLERANCE * memory_gb


@dataclass(frozen=True)
class Cards:
    """The graphics cards of a machine.

    Attributes:
        cards: All that answer, in the library's order.
        driver: The driver's version, None when there is none to ask.
        reason: Why there are no cards, as part of a sentence; None when there are.
    """

    cards: tuple[Card, ...] = ()
    driver: str | None = None
    reason: str | None = None


def read_cards(*, open_all: Callable[[], tuple[Gpu, ...] | str] = open_gpus) -> Cards:
    """Return the graphics cards that NVIDIA's management library knows.

    Args:
        open_all: Opens them, or says in words why there is none.
    """
    gpus = open_all()
    if isinstance(gpus, str):
        return Cards(reason=gpus)
    return Cards(cards=tuple(map(_card, gpus)), driver=gpus[0].driver)


def _card(gpu: Gpu) -> Card:
    memory = gpu.memory_bytes
    return Card(
        name=gpu.name,
        compute_capability=gpu.compute_capability,
        memory_gib=None if memory is None else round(memory / 2**30, 2),
    )
