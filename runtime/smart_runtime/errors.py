"""What the runtime raises; every message says what was expected, what was got and the remedy."""

from __future__ import annotations

from smart_common.errors import SmartError


class BundleError(SmartError):
    """A bundle is damaged, incomplete, changed since export, or of a newer format."""


class SignatureError(BundleError):
    """A bundle's signature is missing or not that of the trusted key, or a key is not what it should be."""


class AuditError(SmartError):
    """An audit log that cannot be one: its file is something else, another model's, or was changed."""


class InputError(SmartError):
    """An input has the wrong shape, dtype or range."""


class PathError(SmartError):
    """A path that this bundle does not have."""


class ClosedError(SmartError):
    """A call on a model after ``close()``, or in a process that was forked from the one that loaded it."""


class EngineError(SmartError):
    """The engine could not be created, or failed while running."""


class OutOfMemoryError(EngineError):
    """There is no room for an engine, in memory or within the budget."""


class DisprovedError(EngineError):
    """What was built for this device computes something else than what was exported."""


class DeviceTakenError(EngineError):
    """The GPU serves one process at a time, and another one has it."""


class DeviceLostError(EngineError):
    """The GPU reported an error after which this process cannot use it any more; start the process again."""
