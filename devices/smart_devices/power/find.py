"""Choose the sensor that says what the network costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from smart_devices.nvml import Gpu, open_gpu
from smart_devices.power.card import find_nvml
from smart_devices.power.hwmon import find_hwmon
from smart_devices.power.rapl import find_rapl
from smart_devices.power.source import NoPower, Part, PowerSource


def find_power(
    *, part: Part = "cpu", root: Path = Path("/"), gpu: Callable[[], Gpu | str] = open_gpu
) -> PowerSource | NoPower:
    """Return the sensor that measures what ``part`` draws: the whole board of a Jetson, else that part alone.

    A graphics card beside a processor that runs the network says nothing about it, and the other way round.

    Args:
        part: What runs the network.
        root: Where ``sys`` lies; another one in tests.
        gpu: Opens the graphics card.

    Raises:
        ValueError: ``part`` is neither.
    """
    if part not in get_args(Part):
        raise ValueError(f"expected one of {', '.join(get_args(Part))}, got {part!r}")
    board = find_hwmon(root)
    if isinstance(board, PowerSource):
        return board
    alone = find_nvml(gpu()) if part == "gpu" else find_rapl(root)
    return alone if isinstance(alone, PowerSource) else NoPower(reason=f"{board.reason}, and {alone.reason}")
