"""The fixtures of the packages that evaluation stands on, and of the bundles that it measures."""

from __future__ import annotations

from export.conftest import built, bundle, checkpoint, checkpoint_file, other_checkpoint_file, padded_build
from train.conftest import data, trained

__all__ = [
    "built",
    "bundle",
    "checkpoint",
    "checkpoint_file",
    "data",
    "other_checkpoint_file",
    "padded_build",
    "trained",
]
