"""How long a network should take on a device, layer by layer: an estimate, never a measurement."""

from __future__ import annotations

from smart_devices.roofline.calibration import (
    CALIBRATED_ENGINE,
    Calibration,
    CalibrationKey,
    calibration_key,
    load_calibration,
    processor_roof,
    store_calibration,
)
from smart_devices.roofline.estimate import Estimate, LayerEstimate, NoEstimate, Roof, estimate
from smart_devices.roofline.peaks import Peaks, peaks_of
from smart_devices.roofline.work import LayerWork, layer_work

__all__ = [
    "CALIBRATED_ENGINE",
    "Calibration",
    "CalibrationKey",
    "Estimate",
    "LayerEstimate",
    "LayerWork",
    "NoEstimate",
    "Peaks",
    "Roof",
    "calibration_key",
    "estimate",
    "layer_work",
    "load_calibration",
    "peaks_of",
    "processor_roof",
    "store_calibration",
]
