"""What smart_devices raises beside the errors of :mod:`smart_common.errors`."""

from __future__ import annotations

from smart_common.errors import SmartError


class UnknownTargetError(SmartError):
    """A device name that no profile has."""


class UnknownEngineError(SmartError):
    """An engine's name that no row has."""


class SensorError(SmartError):
    """A sensor of this machine gave no reading, or one that cannot be right; the message is a part of a sentence."""
