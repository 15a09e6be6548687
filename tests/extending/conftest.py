"""The checkpoint and the bundle that the recipes call demo-out/."""

from __future__ import annotations

from export.conftest import built, bundle, checkpoint_file

__all__ = ["built", "bundle", "checkpoint_file"]
