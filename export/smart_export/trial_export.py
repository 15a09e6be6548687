"""The export's part of the trial before a training: what would stop there after hours stops now."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from smart_common.errors import MissingExtraError
from smart_devices import resolve_target
from smart_export.errors import RoundingError
from smart_export.evidence import divide
from smart_export.graph import Converter
from smart_export.precision import FP32
from smart_export.stages import Export, export_graph, fold_path
from smart_export.timings import Stopwatch
from smart_export.verify import reference_images
from smart_train import Checkpoint


def export_on_trial(checkpoint: Checkpoint) -> None:
    """Fold every path of ``checkpoint``, make one of them a graph and verify it; nothing is left behind.

    One graph tells of all: conversion takes most of the time, and paths differ in numbers only. No accuracy counts; a
    network may round more before its training than after; and a machine that only trains may have no engine.

    Raises:
        ExportError, VerificationError, NetworkError: as `smart_export.build.build_bundle` does.
    """
    target = resolve_target("cpu")
    judging, _ = divide(checkpoint, precision=FP32)
    export = Export(
        checkpoint=checkpoint,
        target=target,
        precision=FP32,
        judging=judging,
        calibrating=None,
        max_drop=1.0,
        undecided="warn",
        random_images=2,
        reference_images=reference_images(
            checkpoint.samples, paths=checkpoint.net.path_names, classes=len(checkpoint.class_names)
        ),
        stopwatch=Stopwatch(),
    )
    to_onnx = Converter(input_shape=checkpoint.input_shape, opset=target.opset)
    with tempfile.TemporaryDirectory(prefix="smart-train-trial-") as folder, suppress(RoundingError, MissingExtraError):
        first, *_ = [fold_path(export, name) for name in checkpoint.net.path_names]
        export_graph(export, first, to_onnx=to_onnx, bundle=Path(folder))
