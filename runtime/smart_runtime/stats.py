"""Counts of what a model did, kept in fixed memory."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from smart_runtime.causes import Cause

_SUB_BITS = 3  # 8 buckets from each power of two to the next
_SUBS = 1 << _SUB_BITS
_BITS = 42  # up to 2**42 ns, 73 minutes; what takes longer counts in the last bucket
_BUCKETS = (_BITS - _SUB_BITS + 1) * _SUBS

_MOST_REASONS = 32  # kept apart, so that what is counted stays bounded
_MOST_OF_REASON = 80  # characters
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")
_OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class LatencyHistogram:
    """How many calls took how long.

    Buckets grow with the latency: each is at most an eighth of its lower bound wide, from 8 ns to 73 minutes (the
    scheme of HdrHistogram, hdrhistogram.org). ``counts`` has one number a bucket, ``bounds_ms`` their upper bounds.
    """

    counts: tuple[int, ...] = field(default=(0,) * _BUCKETS, repr=False)

    @property
    def bounds_ms(self) -> tuple[float, ...]:
        """The upper bound of each bucket, not itself in it; the last one's is only nominal."""
        return tuple(_lower_ns(bucket + 1) / 1e6 for bucket in range(_BUCKETS))

    def quantile(self, fraction: float) -> float | None:
        """Return the latency in ms that ``fraction`` of the calls did not exceed, within 6.25%; None before the first.

        Raises:
            ValueError: ``fraction`` is not in [0, 1].
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"expected a fraction in [0, 1], got {fraction}; 0.99 for the 99th percentile")
        total = sum(self.counts)
        if total == 0:
            return None
        wanted, seen = max(1.0, fraction * total), 0
        bucket = 0
        for bucket, count in enumerate(self.counts):  # noqa: B007  # used after the loop
            seen += count
            if seen >= wanted:
                break
        return (_lower_ns(bucket) + _lower_ns(bucket + 1)) / 2e6


@dataclass(frozen=True, kw_only=True)
class PathStats:
    """What one path did: ``calls`` that gave a result, their ``images`` and latency; ``errors``, calls that raised.

    ``policy_calls`` are those that a policy made for itself, with or without a result; they count nowhere else.
    """

    calls: int = 0
    images: int = 0
    errors: int = 0
    total_latency_ms: float = 0.0
    latency: LatencyHistogram = LatencyHistogram()
    policy_calls: int = 0

    @property
    def mean_latency_ms(self) -> float | None:
        """Mean latency of a call, checks and conversion included; None before the first."""
        return self.total_latency_ms / self.calls if self.calls else None


@dataclass(frozen=True, kw_only=True)
class Stats:
    """A snapshot: what each path did, how often path and bundle changed, and the reason of the last change of path.

    ``policy_failures`` counts the calls whose policy raised, or asked for a switch that failed.

    ``switch_counts`` has the switches by who wanted them, ``hand`` or a policy's name, and by reason: numbers in it are
    ``#``, and where there are many reasons the later ones are ``other``. ``overridden`` says that a hand has set the
    path, so that the policy's wishes count as ``ignored_switches`` until `SmartModel.follow_policy`.
    ``audit_failures`` counts the lines that the audit log lacks, and how often its file was removed or changed.
    """

    paths: Mapping[str, PathStats]
    switches: int
    reloads: int
    policy_failures: int
    last_reason: str
    switch_counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    ignored_switches: int = 0
    overridden: bool = False
    audit_failures: int = 0

    @property
    def switches_by(self) -> Mapping[str, int]:
        """How many switches ``hand`` or a policy, by its name, has made."""
        found: Counter[str] = Counter()
        for (by, _), count in self.switch_counts.items():
            found[by] += count
        return MappingProxyType(dict(found))


class _Counts:
    """What is counted of one path."""

    __slots__ = ("buckets", "calls", "errors", "images", "nanoseconds", "policy_calls")

    def __init__(self) -> None:
        self.calls = self.images = self.errors = self.nanoseconds = self.policy_calls = 0
        self.buckets = [0] * _BUCKETS

    def snapshot(self) -> PathStats:
        return PathStats(
            calls=self.calls,
            images=self.images,
            errors=self.errors,
            total_latency_ms=self.nanoseconds / 1e6,
            latency=LatencyHistogram(counts=tuple(self.buckets)),
            policy_calls=self.policy_calls,
        )


class Recorder:
    """Counts calls, switches and reloads; safe to use from several threads and from signal handlers.

    ``journal`` is told of switches and reloads, an event's name and its fields, in the order in which they happen.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.journal: Callable[[str, dict[str, Any]], None] = _no_journal
        self._switch_counts: Counter[tuple[str, str]] = Counter()
        self._ignored_switches = 0
        self._counts = {name: _Counts() for name in paths}
        self._switches = self._reloads = self._policy_failures = 0
        self._last_reason = ""
        self.new_lock()

    def new_lock(self) -> None:
        """Forget who holds the lock: after a fork it may be a thread that the child does not have."""
        # Re-entrant, since a signal handler that switches may have interrupted its own thread inside of `call`.
        self._lock = threading.RLock()

    def add_paths(self, paths: Iterable[str]) -> None:
        """Count for ``paths`` too, from now on; those that are known go on."""
        with self._lock:
            self._counts = {name: _Counts() for name in paths} | self._counts

    def policy_call(self, path: str) -> None:
        """Count a call that a policy made for itself."""
        with self._lock:
            self._counts[path].policy_calls += 1

    def call(self, path: str, *, images: int, latency_ns: int) -> None:
        """Count a call that gave a result."""
        bucket = _bucket(latency_ns)
        with self._lock:
            counts = self._counts[path]
            counts.calls += 1
            counts.images += images
            counts.nanoseconds += latency_ns
            counts.buckets[bucket] += 1

    def error(self, path: str) -> None:
        """Count a call that raised."""
        with self._lock:
            self._counts[path].errors += 1

    def switch(self, cause: Cause, *, old: str, new: str) -> None:
        """Count a change of the path."""
        reason = cause.reason if isinstance(cause.reason, str) else repr(cause.reason)
        with self._lock:
            self._switches += 1
            self._last_reason = reason
            key = (cause.by, _NUMBER.sub("#", reason[:1000])[:_MOST_OF_REASON])
            if key not in self._switch_counts and len(self._switch_counts) >= _MOST_REASONS:
                key = (cause.by, _OTHER)
            self._switch_counts[key] += 1
            wanted = {"from": old, "to": new, "by": cause.by, "reason": reason, "details": cause.details}
            self.journal("switch", wanted | {"counters": self._totals()})

    def ignored_switch(self) -> None:
        """Count a wish of the policy that a hand has overruled."""
        with self._lock:
            self._ignored_switches += 1

    def reload(self, digest: str) -> None:
        """Count a change of the bundle, to the one with this digest."""
        with self._lock:
            self._reloads += 1
            self.journal("reload", {"bundle": digest, "counters": self._totals()})

    def close(self) -> None:
        """Tell the journal that this is the end."""
        with self._lock:
            self.journal("close", {"counters": self._totals()})

    def _totals(self) -> dict[str, Any]:
        """Return what the journal keeps of the counts."""
        return {
            "calls": {name: counts.calls for name, counts in self._counts.items()},
            "errors": {name: counts.errors for name, counts in self._counts.items()},
            "switches": self._switches,
            "ignored_switches": self._ignored_switches,
            "policy_failures": self._policy_failures,
        }

    def policy_failure(self) -> int:
        """Count a failure of the policy; return how many there have been."""
        with self._lock:
            self._policy_failures += 1
            return self._policy_failures

    def snapshot(self) -> Stats:
        """Return the counts as they stand, all of one moment."""
        with self._lock:
            return Stats(
                paths=MappingProxyType({name: counts.snapshot() for name, counts in self._counts.items()}),
                switches=self._switches,
                reloads=self._reloads,
                policy_failures=self._policy_failures,
                last_reason=self._last_reason,
                switch_counts=MappingProxyType(dict(self._switch_counts)),
                ignored_switches=self._ignored_switches,
            )


def _no_journal(_: str, __: dict[str, Any]) -> None:
    """Keep nothing: there is no audit log."""


def _bucket(nanoseconds: int) -> int:
    """Return the bucket of a latency: its own below 8 ns, then by the highest bit and the three bits after it."""
    if nanoseconds < _SUBS:
        return max(nanoseconds, 0)
    shift = nanoseconds.bit_length() - _SUB_BITS - 1
    return min(shift * _SUBS + (nanoseconds >> shift), _BUCKETS - 1)


def _lower_ns(bucket: int) -> int:
    """Return the smallest latency of a bucket."""
    if bucket < _SUBS:
        return bucket
    shift = bucket // _SUBS - 1
    return (bucket % _SUBS + _SUBS) << shift
