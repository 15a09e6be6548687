"""What the training side raises; every message says what is wrong and the remedy."""

from __future__ import annotations

from smart_common.errors import SmartError


class ConfigError(SmartError):
    """An option, or a combination of options, that cannot work."""


class NetworkError(SmartError):
    """A network that SMART cannot be applied to, with the reason."""


class DataError(SmartError):
    """A data set that is missing, damaged or of the wrong form."""


class CheckpointError(SmartError):
    """A checkpoint that is damaged, of a newer format, or not one of ours."""
