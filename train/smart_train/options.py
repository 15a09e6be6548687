"""Read option values that both training command lines take."""

from __future__ import annotations

import re
from collections.abc import Sequence

from smart_train.architectures import Argument
from smart_train.errors import ConfigError

MAX_TEXT = 200  # characters of a model argument


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


def parse_arguments(pairs: Sequence[str]) -> dict[str, Argument]:
    """Read ``NAME=VALUE`` model arguments: integers, decimals, ``true`` and ``false``, and all else as text.

    Raises:
        ConfigError: if one has another form, or a text is long or not printable.
    """
    result: dict[str, Argument] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w{0,99}", name, re.ASCII) or not text or not text.isprintable():
            raise ConfigError(f"expected a model argument as NAME=VALUE, got {pair!a:.100}; write --model-arg width=32")
        if len(text) > MAX_TEXT:
            raise ConfigError(f"expected a model argument of at most {MAX_TEXT} characters, got {len(text)} for {name}")
        result[name] = _value(text)
    return result


def _value(text: str) -> Argument:
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20}([eE][+-]?[0-9]{1,2})?|[eE][+-]?[0-9]{1,2})", text, re.ASCII):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)
