"""The ``~`` in paths that no shell has expanded."""

from __future__ import annotations

import os
from pathlib import Path

from smart_train.errors import DataError


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` with ``~`` or ``~user`` in front replaced by that home directory.

    Raises:
        DataError: if there is no such user, or nothing says where the home directory is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"no home directory for the ~ of {path}; write the path out in full") from error
