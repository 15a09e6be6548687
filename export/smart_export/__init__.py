"""Fold the paths of a trained network into small ONNX graphs, verify them, and write the bundle that is deployed."""

from __future__ import annotations

from smart_export.build import BuildResult, build_bundle
from smart_export.errors import ExportError, GateError, VerificationError
from smart_export.fold import fold

__all__ = ["BuildResult", "ExportError", "GateError", "VerificationError", "build_bundle", "fold"]
