"""Values with a source, and how they are read from JSON: every key, type and range checked, no key left over."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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


class Node:
    """A JSON object on its way into a dataclass: typed access by key, errors that name the place, no key left over."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise ValueError(f"{where}: expected an object, got {data!r}")  # noqa: TRY004  # as every other fault in a file
        self._data: dict[str, Any] = data
        self._where = where
        self._left = set(data)

    @property
    def keys(self) -> tuple[str, ...]:
        """The object's keys, in its order."""
        return tuple(self._data)

    def wrong(self, key: str, expected: str, got: object) -> ValueError:
        """Return the error that says what was expected at ``key`` and what was got."""
        return ValueError(f"{self._where}: {key}: expected {expected}, got {got!r}")

    def take(self, key: str) -> object:
        """Return the value of ``key``, which must be there."""
        if key not in self._data:
            raise ValueError(f"{self._where}: expected the key {key!r}, got {', '.join(self._data) or 'none'}")
        self._left.discard(key)
        return self._data[key]

    def close(self, made: T) -> T:
        """Return ``made``; refuse keys that nothing took, which are misspelt as a rule."""
        if self._left:
            raise ValueError(f"{self._where}: expected no other keys, got {', '.join(sorted(self._left))}")
        return made

    def child(self, key: str) -> Node:
        """Return the object at ``key``."""
        return Node(self.take(key), f"{self._where}: {key}")

    def optional(self, key: str) -> Node | None:
        """Return the object at ``key``, ``None`` for null."""
        return None if self.take(key) is None else self.child(key)

    def children(self, key: str) -> tuple[Node, ...]:
        """Return the objects in the list at ``key``."""
        value = self.take(key)
        if not isinstance(value, (list, tuple)):
            raise self.wrong(key, "a list", value)
        return tuple(Node(item, f"{self._where}: {key}[{i}]") for i, item in enumerate(value))

    def choice(self, key: str, choices: tuple[object, ...]) -> object:
        """Return the value of ``key``, one of ``choices``."""
        value = self.take(key)
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            raise self.wrong(key, f"one of {', '.join(map(str, choices))}", value)
        return value

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        """Return the text at ``key``, which is not blank and all of which ``pattern`` matches."""
        value = self.take(key)
        if not isinstance(value, str) or not value.strip() or (pattern and not pattern.fullmatch(value)):
            raise self.wrong(key, f"text like {pattern.pattern}" if pattern else "text", value)
        return value

    def text_or_none(self, key: str) -> str | None:
        """Return the text at ``key``, ``None`` for null."""
        return None if self.take(key) is None else self.text(key)

    def texts(self, key: str, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        """Return the texts in the list at ``key``, none twice."""
        value = self.take(key)
        if not isinstance(value, (list, tuple)) or len(set(map(str, value))) != len(value):
            raise self.wrong(key, "a list without repetitions", value)
        return tuple(Node({key: item}, self._where).text(key, pattern) for item in value)

    def number(self, unit: str) -> Fact[float]:
        """Return this object as a positive number with its unit and source."""
        return self.fact(is_positive, "a positive number or null", unit)

    def fact(self, valid: Callable[[object], bool], expected: str, unit: str | None) -> Fact[Any]:
        """Return this object as a value that is ``valid`` or null, with its unit and source."""
        value = self.take("value")
        if value is not None and not valid(value):
            raise self.wrong("value", expected, value)
        if self.take("unit") != unit:
            raise self.wrong("unit", repr(unit), self._data["unit"])
        return self.close(Fact(value=value, unit=unit, source=self.text("source")))

    def fact_or_none(
        self, key: str, valid: Callable[[object], bool], expected: str, unit: str | None
    ) -> Fact[Any] | None:
        """Return `fact` of the object at ``key``, ``None`` for null."""
        node = self.optional(key)
        return None if node is None else node.fact(valid, expected, unit)
