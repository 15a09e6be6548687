"""Save tensors so that a reader, or a crash, sees the old file or the new one and nothing between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from smart_common.files import replacing


def save_atomically(value: Any, path: Path) -> None:
    """``torch.save`` into ``path``, whole or not at all; raises OSError if the system refuses."""
    with replacing(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch finds its file too short and forgets why the write before that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
