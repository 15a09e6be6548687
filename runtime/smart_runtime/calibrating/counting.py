"""Run both paths on clean frames, and count them in the bins of a bundle's operating points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from smart_runtime.engines import Scores
from smart_runtime.frames import preprocess
from smart_runtime.model import SmartModel
from smart_runtime.tripwire.calibration import Calibration, calibration_of
from smart_runtime.tripwire.records import TripwireRecord


def calibrate_on(
    model: SmartModel, files: Sequence[Path], *, tripwire: TripwireRecord, advance: Callable[[], object]
) -> Calibration:
    """Return the counts of the pictures in ``files``, each a call of batch 1 on both paths; ``advance`` after each.

    Raises:
        InputError: One cannot be read, or there are too few.
    """
    rows: dict[str, list[Scores]] = {tripwire.clean: [], tripwire.robust: []}
    for file in files:
        both = model.both(preprocess(file, model)).scores
        for path, scores in rows.items():
            scores.append(both[path])
        advance()
    none = np.zeros((0, model.manifest.output.classes), np.float32)
    clean, robust = (np.concatenate([none, *rows[path]]) for path in (tripwire.clean, tripwire.robust))
    return calibration_of((clean, robust), tripwire=tripwire, digest=model.bundle.digest)
