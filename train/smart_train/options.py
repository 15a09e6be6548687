"""Read option values that both training command lines take."""

from __future__ import annotations

import re
from collections.abc import Sequence

from smart_train.choices import Argument
from smart_train.errors import ConfigError

MAX_TEXT = 200  # characters of a value
_EXAMPLES = {"--model-arg": "--model-arg width=32", "--set": "--set beta=6"}


def parse_fraction(text: str) -> float:
    """Read a radius or step in pixel units, a decimal or a fraction: ``0.3``, ``8/255``.

    Raises:
        ConfigError: if it is neither.
    """
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"expected eps or a step as a decimal or fraction, got {text!r}; write 8/255") from error


def parse_arguments(pairs: Sequence[str], *, option: str = "--model-arg") -> dict[str, Argument]:
    """Read the ``NAME=VALUE`` of ``option``: integers, decimals, ``true`` and ``false``, and all else as text.

    Raises:
        ConfigError: if one has another form, or a text is long or not printable.
    """
    result: dict[str, Argument] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w{0,99}", name, re.ASCII) or not text or not text.isprintable():
            raise ConfigError(f"expected {option} NAME=VALUE, got {pair!a:.100}; write {_EXAMPLES[option]}")
        if len(text) > MAX_TEXT:
            raise ConfigError(f"expected at most {MAX_TEXT} characters after {option} {name}=, got {len(text)}")
        result[name] = _value(text)
    return result


def _value(text: str) -> Argument:
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20}([eE][+-]?[0-9]{1,2})?|[eE][+-]?[0-9]{1,2})", text, re.ASCII):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)
