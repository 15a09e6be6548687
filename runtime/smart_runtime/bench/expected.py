"""How long each graph should take on this machine, to stand beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smart_devices.roofline import Estimate, NoEstimate, estimate, processor_roof
from smart_runtime.bundle.bundle import Bundle


def expected(
    bundle: Bundle, graph: str, *, engine: str, batch: int, threads: int, cache_dir: Path | None
) -> Estimate | NoEstimate:
    """Return how long a call of ``graph`` should take here, by the calibration in ``cache_dir``."""
    manifest = bundle.manifest
    roof = processor_roof(precision=manifest.precision, threads=threads, cache_dir=cache_dir, engine=engine)
    return estimate(manifest.graph(graph).layers, roof=roof, batch=batch)


def why(found: Sequence[Estimate | NoEstimate]) -> str:
    """Return in one line what the estimates rest on, or why there are none."""
    rests = [one.assumes for one in found if isinstance(one, Estimate)]
    missing = [one.reason for one in found if isinstance(one, NoEstimate)]
    return "; ".join(dict.fromkeys([*rests, *(f"unknown: {reason}" for reason in missing)]))
