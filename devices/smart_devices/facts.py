"""Values with a source, and how they are read from JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from smart_common.documents import Reader

T = TypeVar("T")


@dataclass(frozen=True)
class Fact(Generic[T]):
    """One value with its unit and source.

    Attributes:
        value: The value, ``None`` while it is unverified.
        unit: Its unit, ``None`` for counts and labels.
        source: Where it was read or how it was computed; for an unverified value, what is known.
    """

    value: T | None
    unit: str | None
    source: str

    def __str__(self) -> str:
        """Return the value for people: ``204.8 GB/s``, ``yes``, ``unknown``."""
        if self.value is None:
            return "unknown"
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        return f"{self.value:g} {self.unit}" if self.unit and isinstance(self.value, (int, float)) else str(self.value)


def is_positive(value: object) -> bool:
    """Say whether ``value`` is a number above 0 that JSON can hold; ``True`` is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def read_fact(entry: Reader, valid: Callable[[object], bool], expected: str, unit: str | None) -> Fact[Any]:
    """Return the value in ``entry``, ``valid`` or null, with its unit and source.

    Args:
        entry: ``{"value": ..., "unit": ..., "source": ...}``.
        valid: Says whether a value can be that.
        expected: What that is, in words.
        unit: The unit that the entry must have.
    """
    entry.exactly("value", "unit", "source")
    value = entry.value("value")
    if value is not None and not valid(value):
        raise entry.wrong("value", f"{expected} or null")
    return Fact(value=value, unit=entry.choice("unit", [unit]), source=entry.string("source"))


def read_number(entry: Reader, unit: str) -> Fact[float]:
    """Return the number above 0, or null, in ``entry``, with its unit and source."""
    return read_fact(entry, is_positive, "a positive number", unit)
