"""How long each graph takes on the target at least: an estimate, since there may be no such device here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TypeAlias

from smart_devices import Target
from smart_devices.roofline import Estimate, NoEstimate, estimate, peaks_of
from smart_export.layers import NetworkCost
from smart_export.precision import Precision

Expected: TypeAlias = Estimate | NoEstimate

_MEASURE = NoEstimate(reason="a processor's peaks say little about it; smart-bench measures the latency on it")


def expected_latency(cost: NetworkCost, *, target: Target, precision: Precision) -> Expected:
    """Return the least time that a call with one image takes on ``target``; nothing is said of a processor."""
    roof = _MEASURE if target.profile.kind == "cpu" else peaks_of(target.profile, precision=precision)
    return estimate(map(asdict, cost.layers), roof=roof)


def expected_lines(estimates: Mapping[str, Expected]) -> Iterator[str]:
    """Yield what is expected of each graph, then what that rests on; or why nothing is."""
    for name, found in estimates.items():
        if isinstance(found, Estimate):
            yield f"{name}: {found}, {found.share('compute'):.0%} of it in layers bound by arithmetic"
    yield from dict.fromkeys(
        f"expected by {found.assumes}" if isinstance(found, Estimate) else f"expected latency {found}"
        for found in estimates.values()
    )
