"""How long each graph should take on this machine, to stand beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smart_devices.roofline import (
    CALIBRATED_ENGINE,
    Estimate,
    NoEstimate,
    Roof,
    calibration_key,
    estimate,
    load_calibration,
)
from smart_runtime.bundle import Bundle

_CALIBRATED_PRECISION = "fp32"


def roof_here(*, engine: str, threads: int, cache_dir: Path | None) -> Roof | NoEstimate:
    """Return what is known of this machine: the calibration for ``engine`` and ``threads`` in ``cache_dir``."""
    if engine != CALIBRATED_ENGINE:
        return NoEstimate(reason=f"only {CALIBRATED_ENGINE} can be calibrated, this is {engine}")
    found = None
    if cache_dir is not None:
        found = load_calibration(calibration_key(threads=threads, engine=engine), cache_dir=cache_dir)
    if found is None:
        return NoEstimate(
            reason=f"this processor was not calibrated with {threads} thread{'s' if threads > 1 else ''}: smart-bench "
            f"--calibrate --threads {threads} does it in seconds"
        )
    return found


def expected(bundle: Bundle, graph: str, *, roof: Roof | NoEstimate, batch: int) -> Estimate | NoEstimate:
    """Return how long a call of ``graph`` should take under ``roof``."""
    precision = bundle.manifest.precision
    if not isinstance(roof, NoEstimate) and precision != _CALIBRATED_PRECISION:
        return NoEstimate(reason=f"a processor is calibrated for {_CALIBRATED_PRECISION}, this is {precision}")
    return estimate(bundle.manifest.graph(graph).layers, roof=roof, batch=batch)


def why(found: Sequence[Estimate | NoEstimate]) -> str:
    """Return in one line what the estimates rest on, or why there are none."""
    rests = [one.assumes for one in found if isinstance(one, Estimate)]
    missing = [one.reason for one in found if isinstance(one, NoEstimate)]
    return "; ".join(dict.fromkeys([*rests, *(f"unknown: {reason}" for reason in missing)]))
