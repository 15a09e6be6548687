from __future__ import annotations

from train.conftest import data, trained

__all__ = ["data", "trained"]
