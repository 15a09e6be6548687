"""Where an export's time and memory go."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STATUS, _STAT = Path("/proc/self/status"), Path("/proc/self/stat")
_START_FIELD = 22  # of proc(5), stat: when the process started, in clock ticks after boot


class Stopwatch:
    """Times named phases of work: ``seconds`` of wall time by phase, in their order, which ``on_phase`` gets too."""

    def __init__(self, *, on_phase: Callable[[str, float], None] = lambda _, __: None) -> None:
        self._on_phase = on_phase
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block; the block of a name that was there before adds to it."""
        started = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Add a phase that was timed elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._on_phase(name, seconds)


def seconds_since_start() -> float | None:
    """Return how long ago this process started, so that imports count too; None where the system does not say."""
    try:
        # The name, field 2, is in brackets and may hold spaces; fields are counted from behind it.
        fields = _STAT.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        ticks = int(fields[_START_FIELD - 3])
    except (OSError, IndexError, ValueError):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    with suppress(OSError, IndexError, ValueError):  # rusage starts from the memory of the process that called this one
        for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
