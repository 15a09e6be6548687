"""Open a bundle on the device, run it, switch paths in place.

Boundary: this package runs where the bundle is deployed, so it never imports torch or onnx, and importing it loads no
engine either; ONNX Runtime, Pillow and matplotlib are imported where they are used.

    from smart_runtime import SmartModel

    with SmartModel.load("bundle/") as model:
        scores = model(frames)
        model.path = "robust"
"""

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.engines import EngineOptions
from smart_runtime.errors import (
    BundleError,
    ClosedError,
    EngineError,
    InputError,
    OutOfMemoryError,
    PathError,
    SignatureError,
)
from smart_runtime.memory import MemoryReport, PathMemory
from smart_runtime.model import Result, SmartModel
from smart_runtime.stats import LatencyHistogram, PathStats, Stats

__all__ = [
    "Bundle",
    "BundleError",
    "ClosedError",
    "EngineError",
    "EngineOptions",
    "InputError",
    "LatencyHistogram",
    "MemoryReport",
    "OutOfMemoryError",
    "PathError",
    "PathMemory",
    "PathStats",
    "Result",
    "SignatureError",
    "SmartModel",
    "Stats",
]
