"""The export's part of the trial before a training: what would stop there after hours stops now."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from smart_common.errors import MissingExtraError
from smart_export.build import build_bundle
from smart_export.errors import RoundingError
from smart_train import Checkpoint


def export_on_trial(checkpoint: Checkpoint) -> None:
    """Fold, convert and verify every path of ``checkpoint``, and leave nothing behind.

    No accuracy counts; a network may round more before its training than after; and a machine that only trains may have
    no engine.

    Raises:
        ExportError, VerificationError, NetworkError: as `smart_export.build.build_bundle` does.
    """
    with tempfile.TemporaryDirectory(prefix="smart-train-trial-") as folder, suppress(RoundingError, MissingExtraError):
        build_bundle(
            checkpoint,
            output=Path(folder, "bundle"),
            target="cpu",
            baseline=False,
            max_drop=1.0,
            random_images=2,
            allow_slow_structure=True,
        )
