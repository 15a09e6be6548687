"""What a check raises."""

from __future__ import annotations


class CheckFailed(AssertionError):  # noqa: N818  # what pytest shows as a failure, not as an error
    """Something does not do what it promises; the message says what was expected and what was there."""


def check(holds: bool, message: str) -> None:
    """Raise `CheckFailed` with ``message`` unless it ``holds``."""
    if not holds:
        raise CheckFailed(message)
