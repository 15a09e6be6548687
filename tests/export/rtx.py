"""TensorRT-RTX as a judge of graphs: its parser and builder need no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from smart_export.rtx import plan_from_onnx
from smart_runtime.bundle.manifest import InputSpec


def assert_builds(
    file: Path, *, shape: tuple[int, int, int], capabilities: Sequence[str] = ("8.9",), sparse_weights: bool = False
) -> None:
    """Build one plan for GPUs of these compute capabilities, with batches of 1 to 64."""
    pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX library (extra tensorrt-rtx) is not installed")
    channels, height, width = shape
    inputs = InputSpec(name="image", channels=channels, height=height, width=width)
    plan = plan_from_onnx(file, inputs=inputs, capabilities=capabilities, sparse_weights=sparse_weights)
    assert plan.nbytes > 0
