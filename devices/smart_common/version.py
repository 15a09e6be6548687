"""The version of the installed smart-edge distribution."""

from __future__ import annotations


def version() -> str:
    """Return the version of smart-edge, ``"unknown"`` when its source tree is used without being installed."""
    from importlib import metadata  # noqa: PLC0415  # as long to import as all the rest of smart_devices

    try:
        return metadata.version("smart-edge")
    except metadata.PackageNotFoundError:
        return "unknown"
