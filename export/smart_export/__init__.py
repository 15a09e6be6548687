"""Fold the paths of a trained network into small ONNX graphs, verify them, and write the bundle that is deployed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_export.build import BuildResult, build_bundle
    from smart_export.errors import ExportError, GateError, VerificationError
    from smart_export.fold import fold

__all__ = ["BuildResult", "ExportError", "GateError", "VerificationError", "build_bundle", "fold"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "BuildResult": "smart_export.build",
        "ExportError": "smart_export.errors",
        "GateError": "smart_export.errors",
        "VerificationError": "smart_export.errors",
        "build_bundle": "smart_export.build",
        "fold": "smart_export.fold",
    },
)
