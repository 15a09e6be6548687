"""The root of every exception that smart-edge raises on purpose."""

from __future__ import annotations


class SmartError(Exception):
    """Something the user can mend: one sentence with what was expected, what was got and the remedy.

    Command lines print it after ``error:`` and exit with status 1; it never shows a traceback.
    """


class UnknownTargetError(SmartError):
    """A device name that no profile has."""


class MissingExtraError(SmartError):
    """An optional library that the call needs is not installed; the message names the pip command."""


class SensorError(SmartError):
    """A sensor of this machine gave no reading, or one that cannot be right; the message is a part of a sentence."""
