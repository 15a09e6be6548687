"""Read JSON that may come from anyone: strictly, and saying where in the document a wrong value stands."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias, TypeGuard

from smart_common.errors import SmartError
from smart_common.names import is_printable

JsonObject: TypeAlias = Mapping[str, Any]
Damaged: TypeAlias = Callable[[str], Exception]
"""Makes the error that is raised from "expected X at Y, got Z"."""

MAX_DEPTH = 64
"""No document is nested deeper: a manifest has 9 levels."""

MAX_TEXT = 4096
"""Characters of a text that is read as such: they reach terminals and error messages."""

_MAX_COUNT = 2**63 - 1  # more than any size or count
_MAX_DIGITS = 300  # of a number: what they make fits a float, and reading them takes no time that grows as their square


def read_limited(path: Path, *, what: str, max_bytes: int, error: Callable[[str], SmartError]) -> bytes:
    """Return the content of a file that the user named, of at most ``max_bytes``, whatever size the system claims.

    ``what`` is what it should be, as in ``recipe``. ``error`` makes what is raised: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as failure:
        raise error(f"no {what} at {path}: {failure.strerror}; check the path") from failure
    if len(data) > max_bytes:
        raise error(f"{path} is larger than any {what}, which has at most {max_bytes} bytes; check the path")
    return data


def parse_json(data: bytes, *, damaged: Damaged) -> Any:
    """Return the JSON value in ``data``; only what ``damaged`` makes is raised.

    Stricter than `json.loads`: UTF-8 only, no NaN or infinity, no key twice in one object (two readers may take
    different ones of the two values), at most `MAX_DEPTH` levels, no number of more than 300 characters.
    """
    try:
        text = data.decode("utf-8")
        _check_depth(text)
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=lambda number: int(_short(number)),
            parse_float=_finite,
            object_pairs_hook=_unique_keys,
        )
    except ValueError as error:  # bad UTF-8, bad JSON, and what the functions below refuse
        raise damaged(f"expected JSON in UTF-8, got {type(error).__name__}: {error}") from error


def parse_document(data: bytes, *, damaged: Damaged) -> Reader:
    """Return a reader of the JSON object in ``data``; see `parse_json`."""
    return Reader(parse_json(data, damaged=damaged), where="", damaged=damaged)


class Reader:
    """One JSON object, and where it stands in its document, for the error message.

    Every method raises what ``damaged`` makes if the value is not what is asked for.
    """

    def __init__(self, value: object, *, where: str, damaged: Damaged) -> None:
        """Read ``value``; ``where`` is "" for the document itself."""
        if not isinstance(value, dict):
            raise damaged(f"expected an object at {where or 'the document'}, got {_shown(value)}")
        self.raw: JsonObject = MappingProxyType(value)
        self._where = where
        self._place = where or "the document"
        self._damaged = damaged

    @property
    def keys(self) -> list[str]:
        """The object's keys, in the document's order."""
        return list(self.raw)

    def wrong(self, key: str, expected: str) -> Exception:
        """Return the error that says that ``expected`` should stand under ``key``."""
        got = _shown(self.raw[key]) if key in self.raw else "nothing"
        return self._damaged(f"expected {expected} at {self._path(key)}, got {got}")

    def unlike(self, expected: str) -> Exception:
        """Return the error that says that this object should have ``expected``, and which keys it has."""
        return self._damaged(f"expected {expected} at {self._place}, got {_shown(self.keys)}")

    def only(self, *allowed: str) -> None:
        """Refuse every key but ``allowed``; none of them need be there."""
        for key in self.raw:
            if key not in allowed:
                raise self._damaged(f"expected only {', '.join(allowed)} at {self._place}, got {_shown(key)} too")

    def exactly(self, *keys: str) -> None:
        """Refuse every key but ``keys``, and an object without one of them: what may be null is written as null."""
        self.only(*keys)
        for key in keys:
            if key not in self.raw:
                raise self.wrong(key, "a value")

    def value(self, key: str) -> Any:
        """Return what stands under ``key``, None for null and for nothing."""
        return self.raw.get(key)

    def object(self, key: str) -> Reader:
        """Return a reader of the object under ``key``."""
        if key not in self.raw:
            raise self.wrong(key, "an object")
        return Reader(self.raw[key], where=self._path(key), damaged=self._damaged)

    def object_or_none(self, key: str) -> Reader | None:
        """Return a reader of the object under ``key``, None for null and for nothing."""
        return None if self.value(key) is None else self.object(key)

    def optional_object(self, key: str) -> JsonObject | None:
        """Return the object under ``key`` as it is, None for null and for nothing."""
        return None if self.value(key) is None else self.object(key).raw

    def objects(self, key: str) -> tuple[Reader, ...]:
        """Return a reader of each object in the list under ``key``; none where nothing stands there."""
        value = self.raw.get(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, "a list of objects")
        path = self._path(key)
        return tuple(Reader(item, where=f"{path}[{i}]", damaged=self._damaged) for i, item in enumerate(value))

    def string(self, key: str) -> str:
        """Return the text under ``key``, not blank and not longer than `MAX_TEXT`.

        It is printable: such texts reach terminals, where a stranger's control characters could redraw the screen.
        """
        value = self.value(key)
        if not _is_printable(value) or not value.strip():
            raise self.wrong(key, "a printable text")
        return value

    def optional_string(self, key: str) -> str | None:
        """Return the text under ``key``, None for null and for nothing."""
        return None if self.value(key) is None else self.string(key)

    def strings(self, key: str) -> tuple[str, ...]:
        """Return the list of printable texts under ``key``; they may be empty."""
        value = self.value(key)
        if not isinstance(value, list) or not all(map(_is_printable, value)):
            raise self.wrong(key, "a list of printable texts")
        return tuple(value)

    def texts(self) -> dict[str, str]:
        """Return every key with the text under it; both are printable, as those of `string`."""
        for key in self.raw:
            if not _is_printable(key):
                raise self._damaged(f"expected printable keys at {self._place}, got {_shown(key)}")
        return {key: self.string(key) for key in self.raw}

    def choice(self, key: str, choices: Sequence[str | None]) -> Any:
        """Return what stands under ``key``, one of ``choices``."""
        value = self.value(key)
        if (value is not None and not isinstance(value, str)) or value not in choices:
            raise self.wrong(key, "one of " + ", ".join(json.dumps(choice) for choice in choices))
        return value

    def boolean(self, key: str) -> bool:
        """Return the truth value under ``key``."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def integer(self, key: str, *, low: int, high: int = _MAX_COUNT) -> int:
        """Return the whole number under ``key``, from ``low`` to ``high``."""
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:  # a bool is an int
            span = f"{low} or more," if high == _MAX_COUNT else f"{low} to {high},"
            raise self.wrong(key, f"a whole number, {span}")
        return value

    def optional_integer(self, key: str, *, low: int, high: int = _MAX_COUNT) -> int | None:
        """Return the whole number under ``key``, None for null and for nothing."""
        return None if self.value(key) is None else self.integer(key, low=low, high=high)

    def optional_number(self, key: str) -> float | None:
        """Return the number under ``key``, 0 or more and finite, None for null and for nothing."""
        value = self.value(key)
        if value is not None and not _is_number(value):
            raise self.wrong(key, "a number, 0 or more, or null")
        return None if value is None else float(value)

    def positive(self, key: str) -> float:
        """Return the number under ``key``, above 0 and finite."""
        value = self.value(key)
        if not _is_number(value) or float(value) == 0:
            raise self.wrong(key, "a number above 0")
        return float(value)

    def positives(self, key: str) -> tuple[float, ...]:
        """Return the list of numbers under ``key``, each above 0 and finite."""
        value = self.value(key)
        if not isinstance(value, list) or not all(_is_number(item) and float(item) > 0 for item in value):
            raise self.wrong(key, "a list of numbers above 0")
        return tuple(float(item) for item in value)

    def fraction(self, key: str) -> float | None:
        """Return the number under ``key``, in [0, 1], None for null and for nothing."""
        value = self.optional_number(key)
        if value is not None and value > 1:
            raise self.wrong(key, "a number in [0, 1] or null")
        return value

    def _path(self, key: str) -> str:
        key = key if key.isprintable() and len(key) <= 80 else repr(key[:80])
        return f"{self._where}.{key}" if self._where else key


def _is_number(value: object) -> bool:
    """Say whether ``value`` is a number from 0 on that a float can hold; whole numbers may be longer than that."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _is_printable(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and is_printable(value) and len(value) <= MAX_TEXT


def _check_depth(text: str) -> None:
    """Refuse text that is nested deeper than `MAX_DEPTH`, before a parser that recurses sees it."""
    # What stands between quotes is text: with the escaped backslashes and then the escaped quotes gone, that is every
    # second piece. A backslash outside of a text is no JSON, and the parser stops there.
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    depth = 0
    for bracket in re.sub(r"[^\[\]{}]+", "", outside):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key that stands twice in one object")
    return result


def _finite(text: str) -> float:
    value = float(_short(text))
    if value in {float("inf"), float("-inf")}:
        raise ValueError(f"{text[:20]}, which is larger than any number")
    return value


def _short(number: str) -> str:
    if len(number) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(number)} characters")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")


def _shown(value: object) -> str:
    """Return ``value`` for an error message, cut short: it may be megabytes from a stranger."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
