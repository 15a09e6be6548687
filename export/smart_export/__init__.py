"""Fold the paths of a trained network into small ONNX graphs, verify them, and write the bundle that is deployed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_export.build import BuildResult, build_bundle
    from smart_export.check import CheckResult, check_bundle
    from smart_export.errors import ExportError, GateError, VerificationError
    from smart_export.folding import fold

__all__ = [
    "BuildResult",
    "CheckResult",
    "ExportError",
    "GateError",
    "VerificationError",
    "build_bundle",
    "check_bundle",
    "fold",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "BuildResult": "smart_export.build",
        "CheckResult": "smart_export.check",
        "ExportError": "smart_export.errors",
        "GateError": "smart_export.errors",
        "VerificationError": "smart_export.errors",
        "build_bundle": "smart_export.build",
        "check_bundle": "smart_export.check",
        "fold": "smart_export.folding",
    },
)
