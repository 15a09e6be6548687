"""Open a bundle on the device, run it, switch paths in place.

Boundary: this package runs where the bundle is deployed, so it never imports torch or onnx, and importing it loads no
engine either; ONNX Runtime, Pillow and matplotlib are imported where they are used.

    from smart_runtime import SmartModel

    with SmartModel.load("bundle/") as model:
        print(model.classify("cat.jpg"))
        model.path = "robust"
        scores = model(frames)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_runtime import policies
    from smart_runtime.audit.audit_log import AuditLog
    from smart_runtime.bundle.bundle import Bundle
    from smart_runtime.calls import Both
    from smart_runtime.classify import Prediction
    from smart_runtime.engines import BatchRange, EngineOptions
    from smart_runtime.errors import (
        AuditError,
        BundleError,
        ClosedError,
        DeviceLostError,
        EngineError,
        InputError,
        OutOfMemoryError,
        PathError,
        SignatureError,
    )
    from smart_runtime.frames import preprocess
    from smart_runtime.memory import MemoryReport, PathMemory
    from smart_runtime.model import SmartModel
    from smart_runtime.policies.hysteresis import Hysteresis
    from smart_runtime.policies.policy import Policy, SwitchRequest
    from smart_runtime.serving import Result
    from smart_runtime.stats import LatencyHistogram, PathStats, Stats

__all__ = [
    "AuditError",
    "AuditLog",
    "BatchRange",
    "Both",
    "Bundle",
    "BundleError",
    "ClosedError",
    "DeviceLostError",
    "EngineError",
    "EngineOptions",
    "Hysteresis",
    "InputError",
    "LatencyHistogram",
    "MemoryReport",
    "OutOfMemoryError",
    "PathError",
    "PathMemory",
    "PathStats",
    "Policy",
    "Prediction",
    "Result",
    "SignatureError",
    "SmartModel",
    "Stats",
    "SwitchRequest",
    "policies",
    "preprocess",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        **dict.fromkeys(__all__, "smart_runtime.errors"),  # but for these:
        "AuditLog": "smart_runtime.audit.audit_log",
        "BatchRange": "smart_runtime.engines",
        "Both": "smart_runtime.calls",
        "Bundle": "smart_runtime.bundle.bundle",
        "EngineOptions": "smart_runtime.engines",
        "Hysteresis": "smart_runtime.policies.hysteresis",
        "LatencyHistogram": "smart_runtime.stats",
        "MemoryReport": "smart_runtime.memory",
        "PathMemory": "smart_runtime.memory",
        "PathStats": "smart_runtime.stats",
        "Policy": "smart_runtime.policies.policy",
        "Prediction": "smart_runtime.classify",
        "Result": "smart_runtime.serving",
        "SmartModel": "smart_runtime.model",
        "Stats": "smart_runtime.stats",
        "SwitchRequest": "smart_runtime.policies.policy",
        "policies": "smart_runtime.policies",
        "preprocess": "smart_runtime.frames",
    },
)
