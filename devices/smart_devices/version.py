"""The version of the installed smart-edge distribution."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Return the version of smart-edge, ``"unknown"`` when its source tree is used without being installed."""
    try:
        return metadata.version("smart-edge")
    except metadata.PackageNotFoundError:
        return "unknown"
