"""What a model did, in Prometheus's text exposition format 0.0.4, for an endpoint of the user's own.

The policy's ``status`` adds its numbers, each as ``smart_edge_policy_NAME``: a name that ends in ``_total`` is a
counter, any other a gauge; True and False are 1 and 0; those of a mapping in it are ``NAME_KEY``. Texts and all else
are left out, and so is what comes after the first 64 numbers, or has the name of one that is there.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from smart_runtime.causes import HAND
from smart_runtime.stats import LatencyHistogram, Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Labels = tuple[tuple[str, str], ...]
_Sample = tuple[str, _Labels, float]  # what follows the name of the family, labels, value

_BOUNDS_NS = tuple(2**bits for bits in range(14, 35))  # 16 us to 17 s; each is the bound of a bucket of ours too
_MOST_NUMBERS = 64
_MOST_OF_NAME = 60
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


def prometheus_text(
    stats: Stats, *, paths: Iterable[str], active: str | None, facts: Mapping[str, str], status: Mapping[str, Any]
) -> str:
    """Return the text, which ends with a line end.

    Args:
        stats: What the model did.
        paths: Its paths.
        active: The one that answers; None once the model is closed.
        facts: Labels of ``smart_edge_info``: the bundle's digest, the engine, the policy.
        status: What the policy says of itself.
    """
    text = _Text()
    by_path = [((("path", name),), one) for name, one in stats.paths.items()]
    text.add("info", "gauge", "What serves; always 1.", [("", tuple(facts.items()), 1)])
    text.add("calls_total", "counter", "Calls that gave a result.", [("", at, one.calls) for at, one in by_path])
    text.add("images_total", "counter", "Images in those calls.", [("", at, one.images) for at, one in by_path])
    text.add("errors_total", "counter", "Calls that raised.", [("", at, one.errors) for at, one in by_path])
    latencies = [
        sample
        for at, one in by_path
        for sample in _histogram(at, one.latency, sum_s=one.total_latency_ms / 1e3, count=one.calls)
    ]
    text.add("latency_seconds", "histogram", "Latency of calls, checks and conversion included.", latencies)
    text.add(
        "path_active",
        "gauge",
        "1 for the path that answers, 0 for the others.",
        [("", (("path", name),), name == active) for name in paths],
    )
    text.add(
        "switches_total",
        "counter",
        "Changes of the path, by who wanted them (hand, or a policy) and why; numbers in a reason are #.",
        [("", (("by", by), ("reason", why)), count) for (by, why), count in stats.switch_counts.items()]
        or [("", (("by", HAND), ("reason", "")), 0)],
    )
    for name, kind, what, value in (
        ("reloads_total", "counter", "Changes of the bundle.", stats.reloads),
        ("policy_failures_total", "counter", "Failures of the policy.", stats.policy_failures),
        ("policy_overridden", "gauge", "1 while a path set by hand overrules the policy.", stats.overridden),
        ("ignored_switches_total", "counter", "What the policy asked for meanwhile.", stats.ignored_switches),
        ("audit_failures_total", "counter", "Audit lines lost, and changes to the file.", stats.audit_failures),
    ):
        text.add(name, kind, what, [("", (), value)])
    for name, number in islice(_numbers(status), _MOST_NUMBERS):
        kind = "counter" if name.endswith("_total") else "gauge"
        text.add(f"policy_{name}", kind, "Of the policy's status.", [("", (), number)])
    return text.whole


class _Text:
    """The text as it grows, a family of samples at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: set[str] = set()

    @property
    def whole(self) -> str:
        return "\n".join(self._lines) + "\n"

    def add(self, name: str, kind: str, what: str, samples: Iterable[_Sample]) -> None:
        """Add a family, unless one of that name is there."""
        name = f"smart_edge_{name}"
        own = {name, *(f"{name}_{part}" for part in ("bucket", "sum", "count") if kind == "histogram")}
        if own & self._names:
            return
        self._names |= own
        self._lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
        self._lines += [f"{name}{suffix}{_labels(labels)} {_value(value)}" for suffix, labels, value in samples]


def _histogram(at: _Labels, latency: LatencyHistogram, *, sum_s: float, count: int) -> Iterator[_Sample]:
    """Yield cumulative buckets; what lies on a bound to the nanosecond counts above it."""
    below, rest = 0, zip(latency.bounds_ms, latency.counts, strict=True)
    bound_ms, in_bucket = next(rest)
    for most_ns in _BOUNDS_NS:
        while round(bound_ms * 1e6) <= most_ns:
            below += in_bucket
            bound_ms, in_bucket = next(rest)
        yield "_bucket", (*at, ("le", f"{most_ns / 1e9!r}")), below
    yield "_bucket", (*at, ("le", "+Inf")), count
    yield "_sum", at, sum_s
    yield "_count", at, count


def _numbers(status: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a policy's status by their names; of mappings within it those of the first level."""
    for key, value in islice(status.items(), 2 * _MOST_NUMBERS):
        name = before + _NOT_IN_A_NAME.sub("_", str(key))[:_MOST_OF_NAME]
        if isinstance(value, numbers.Real):
            try:
                yield name, float(value)
            except (OverflowError, ValueError):  # an integer that no float is as large as
                continue
        elif isinstance(value, Mapping) and not before:
            yield from _numbers(value, f"{name}_")


def _labels(labels: _Labels) -> str:
    quoted = [f'{name}="{_escaped(value)}"' for name, value in labels]
    return "{" + ",".join(quoted) + "}" if quoted else ""


def _escaped(value: str) -> str:
    value = value.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be sent
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _value(value: float) -> str:
    if isinstance(value, bool | int):
        return str(int(value))
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))
