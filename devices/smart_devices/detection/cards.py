"""Which NVIDIA graphics cards there are, through nvidia-ml-py (the module ``pynvml``) where it is installed.

For PCs: a Jetson's library knows neither memory nor clocks, and answering it does not make a machine a PC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

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


def read_cards(*, load: Callable[[str], ModuleType] = import_module) -> Cards:
    """Return the cards that NVIDIA's management library knows.

    Args:
        load: Imports a module by name.
    """
    try:
        nvml: Any = load("pynvml")
    except ImportError:
        return Cards(reason="no nvidia-ml-py to ask for graphics cards with: pip install 'smart-edge[nvml]'")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Cards(reason=f"no NVIDIA driver that answers ({error})")
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        cards = tuple(_card(nvml, handle) for handle in handles)
        driver = _ask(nvml, nvml.nvmlSystemGetDriverVersion)
        return Cards(cards=cards, driver=_text(driver), reason=None if cards else "the NVIDIA driver knows no card")
    except nvml.NVMLError as error:
        return Cards(reason=f"the NVIDIA driver does not tell of its cards ({error})")
    finally:
        _ask(nvml, nvml.nvmlShutdown)


def _card(nvml: Any, handle: Any) -> Card:
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return Card(
        name=_text(_ask(nvml, nvml.nvmlDeviceGetName, handle)) or "NVIDIA GPU",
        compute_capability=None if capability is None else "{}.{}".format(*capability),
        memory_gib=None if memory is None else round(memory.total / 2**30, 2),
    )


def _ask(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the answer, None for what this card or driver does not tell (memory, on machines that share theirs)."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: object) -> str | None:
    """Return a string of the library's, which older versions give as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)
