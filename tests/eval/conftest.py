from __future__ import annotations

from export.conftest import built, bundle, checkpoint_file, other_checkpoint_file
from train.conftest import data, trained

__all__ = ["built", "bundle", "checkpoint_file", "data", "other_checkpoint_file", "trained"]
