"""What the runtime raises; every message says what was expected, what was got and the remedy."""

from __future__ import annotations

from smart_devices.errors import SmartError


class BundleError(SmartError):
    """A bundle is damaged, incomplete, changed since export, or of a newer format."""


class InputError(SmartError):
    """An input has the wrong shape, dtype or range."""


class PathError(SmartError):
    """A path that this bundle does not have."""


class ClosedError(SmartError):
    """A call on a model after ``close()``."""


class EngineError(SmartError):
    """The engine could not be created, or failed while running."""
