"""The lines of an audit log: JSON objects, each with the hash of the one before and its own.

A line is ASCII: the JSON of a record, whose first fields are ``seq``, ``prev`` and ``event``, and before its closing
brace ``,"hash":"..."``, the SHA-256 of the record's JSON without that field. ``prev`` is the ``hash`` of the line
before. The first line of each file is a ``begin``; the very first one has the ``prev`` `NOTHING`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from smart_common.documents import parse_json

FORMAT = 1
BEGIN = "begin"
CLOSE = "close"
SEAL = "seal"
NOTHING = "0" * 64
"""The hash before the first line."""

MAX_LINE = 32 * 1024
"""Bytes of a line, its end included; ours stay below by what `plain` keeps."""

_MAX_TEXT, _MAX_ITEMS, _MAX_DEPTH = 500, 32, 4
_MAX_DETAILS = 8 * 1024  # characters of a value of a record
_MAX_NUMBER = 2**62  # of a line: a larger one is a forger's, and `plain` makes a text of one
_LOG, _HASH = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(rb'(\{[ -~]+),"hash":"([0-9a-f]{64})"\}')


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that is what it says: its number in the log, the hash before it and its own, and its record."""

    seq: int
    prev: str
    hash: str
    event: str
    record: Mapping[str, Any]


def line_of(record: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the line of a record, its end included, and its hash."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii").replace(b"\x7f", rb"\u007f")
    own = hashlib.sha256(text).hexdigest()
    return text[:-1] + f',"hash":"{own}"}}\n'.encode("ascii"), own


def parse_line(data: bytes) -> Line | None:
    """Return the line in ``data``, which is without its end; None if it is none or was changed."""
    match = _LINE.fullmatch(data) if len(data) < MAX_LINE else None
    if match is None or hashlib.sha256(match[1] + b"}").hexdigest() != match[2].decode("ascii"):
        return None
    try:
        record = parse_json(match[1] + b"}", damaged=ValueError)
    except ValueError:
        return None
    seq, prev, event = record.get("seq"), record.get("prev"), record.get("event")
    if not _is_number(seq) or not isinstance(prev, str) or not _HASH.fullmatch(prev) or not isinstance(event, str):
        return None
    return Line(seq=seq, prev=prev, hash=match[2].decode("ascii"), event=event, record=record)


def is_begin(line: Line | None) -> bool:
    """Whether a line can be the first one of a file of this format."""
    return (
        line is not None
        and line.event == BEGIN
        and line.record.get("format") == FORMAT
        and isinstance(line.record.get("log"), str)
        and _LOG.fullmatch(line.record["log"]) is not None
        and _is_number(line.record.get("oldest"))
    )


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def sealed_bytes(log: str, seq: int, prev: str) -> bytes:
    """Return what the signature in the seal with the number ``seq`` is over: the log, and the hash before the seal."""
    return f"smart-edge audit log {FORMAT}\n{log}\n{seq}\n{prev}\n".encode("ascii")


def plain(value: object) -> Any:
    """Return what a line keeps of a value of anyone's: JSON of bounded size, whatever it is."""
    found = _plain(value, _MAX_DEPTH)
    return found if len(json.dumps(found)) <= _MAX_DETAILS else {"too large": True}


def _plain(value: object, depth: int) -> Any:  # noqa: PLR0911  # a row a type
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else _text(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping) and depth:
        return {_text(key): _plain(one, depth - 1) for key, one in islice(value.items(), _MAX_ITEMS)}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes) and depth:
        return [_plain(one, depth - 1) for one in islice(value, _MAX_ITEMS)]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist") and getattr(value, "size", 0) == 1:
        return _plain(value.tolist(), depth)
    return _text(value)


def _text(value: object) -> str:
    return (value if isinstance(value, str) else repr(value))[:_MAX_TEXT]
