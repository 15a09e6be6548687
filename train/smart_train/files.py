"""Write files so that a reader, or a crash, sees the old one or the new one and nothing between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_atomically(value: Any, path: Path) -> None:
    """``torch.save`` beside ``path``, flush to the disk, then rename over it."""
    beside = path.with_name(f".{path.name}.tmp")  # one name, so that what a killed process left is written over
    try:
        with beside.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
