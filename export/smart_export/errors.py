"""What the export side raises; every message says what is wrong and the remedy."""

from __future__ import annotations

from smart_common.errors import SmartError


class ExportError(SmartError):
    """A checkpoint that cannot be exported as asked, or an output place that cannot be used."""


class VerificationError(SmartError):
    """A graph that does not compute what its masked path computes."""


class RoundingError(VerificationError):
    """A network that rounds so much in float32 that no graph of it can be verified."""


class GateError(VerificationError):
    """A graph that classifies worse than its masked path by more than is allowed."""
