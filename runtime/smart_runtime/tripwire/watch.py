"""What the tripwire watches one bundle by: its two paths, and what tells clean frames from attacked ones."""

from __future__ import annotations

import os
from dataclasses import dataclass

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.tripwire.calibration import calibrated, read_calibration
from smart_runtime.tripwire.operating_point import OperatingPoint
from smart_runtime.tripwire.records import require_tripwire


@dataclass(frozen=True, eq=False)
class Watch:
    """The path for clean images and the one for attacked ones, the operating point, and the threshold in nats."""

    bundle: Bundle
    clean: str
    robust: str
    point: OperatingPoint
    threshold: float

    def other(self, path: str) -> str | None:
        """Return the path to hold against ``path``; None if that is neither of the two, but a mix or a third one."""
        return {self.clean: self.robust, self.robust: self.clean}.get(path)


def watch_of(
    bundle: Bundle, *, score: str | None, calibration: str | os.PathLike[str] | None, frames_between: float
) -> Watch:
    """Return how to watch ``bundle``; ``frames_between`` are the shadow frames from one false alarm to the next.

    Raises:
        BundleError: The bundle has no such pair of paths, no operating points, or damaged ones.
        InputError: It has none for ``score``; or the calibration is missing, damaged or another bundle's.
    """
    found = require_tripwire(bundle.manifest)
    if calibration is not None:
        found = calibrated(found, read_calibration(calibration), digest=bundle.digest)
    point = found.point(score)
    return Watch(bundle, found.clean, found.robust, point, point.threshold(max(1.0, frames_between)))
