"""Where this user's machine keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path | None:
    """Return ``$XDG_CACHE_HOME/smart-edge``, or ``~/.cache/smart-edge`` where that is not set; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG base directory specification has relative paths ignored
        return Path(base) / "smart-edge"
    try:
        return Path.home() / ".cache" / "smart-edge"
    except RuntimeError:  # a container, say, whose user no passwd file knows
        return None
