"""How long each graph should take on the target: an estimate, since there may be no such device here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TypeAlias

from smart_common.cache import default_cache_dir
from smart_devices import Target
from smart_devices.cpu import this_machine
from smart_devices.profiles import profile_of
from smart_devices.roofline import Estimate, NoEstimate, Roof, estimate, peaks_of, processor_roof
from smart_export.layers import NetworkCost
from smart_export.precision import Precision

Expected: TypeAlias = Estimate | NoEstimate


def expected_latency(cost: NetworkCost, *, target: Target, precision: Precision) -> Expected:
    """Return how long a call with one image should take on ``target``, at one thread where it is a processor."""
    return estimate(map(asdict, cost.layers), roof=_roof(target, precision))


def expected_lines(estimates: Mapping[str, Expected]) -> Iterator[str]:
    """Yield what is expected of each graph, then what that rests on; or why nothing is."""
    for name, found in estimates.items():
        if isinstance(found, Estimate):
            yield f"{name}: {found}, {found.share('compute'):.0%} of it in layers bound by arithmetic"
    yield from dict.fromkeys(
        f"expected by {found.assumes}" if isinstance(found, Estimate) else f"expected latency {found}"
        for found in estimates.values()
    )


def _roof(target: Target, precision: Precision) -> Roof | NoEstimate:
    profile = target.profile
    if profile.kind != "cpu":
        return peaks_of(profile, precision=precision)
    here = profile_of((this_machine() or "").lower())
    if here is None or here.name != profile.name:
        return NoEstimate(reason=f"what a {profile.title} attains differs, and this machine has none to calibrate")
    return processor_roof(precision=precision, threads=1, cache_dir=default_cache_dir())
