"""Counts of what a model did, kept in fixed memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class PathStats:
    """What one path did: ``calls`` that gave a result, their ``images`` and latency; ``errors``, calls that raised."""

    calls: int = 0
    images: int = 0
    errors: int = 0
    total_latency_ms: float = 0.0

    @property
    def mean_latency_ms(self) -> float | None:
        """Mean latency of a call, checks and conversion included; None before the first."""
        return self.total_latency_ms / self.calls if self.calls else None


@dataclass(frozen=True, kw_only=True)
class Stats:
    """A snapshot: per path, how often the model changed its path, and the reason given for the last change."""

    paths: Mapping[str, PathStats]
    switches: int
    last_reason: str


class Recorder:
    """Counts calls and switches; safe to use from several threads."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._counts = {name: [0, 0, 0, 0] for name in paths}  # calls, images, errors, nanoseconds
        self._switches = 0
        self._last_reason = ""

    def call(self, path: str, *, images: int, latency_ns: int) -> None:
        """Count a call that gave a result."""
        with self._lock:
            counts = self._counts[path]
            counts[0] += 1
            counts[1] += images
            counts[3] += latency_ns

    def error(self, path: str) -> None:
        """Count a call that raised."""
        with self._lock:
            self._counts[path][2] += 1

    def switch(self, reason: str) -> None:
        """Count a change of the path."""
        with self._lock:
            self._switches += 1
            self._last_reason = reason

    def snapshot(self) -> Stats:
        """Return the counts as they stand, all of one moment."""
        with self._lock:
            paths = {
                name: PathStats(calls=calls, images=images, errors=errors, total_latency_ms=nanoseconds / 1e6)
                for name, (calls, images, errors, nanoseconds) in self._counts.items()
            }
            return Stats(paths=MappingProxyType(paths), switches=self._switches, last_reason=self._last_reason)
