"""Read option values that both training command lines take."""

from __future__ import annotations

import re

from smart_train.errors import ConfigError


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


def parse_arguments(pairs: tuple[str, ...]) -> dict[str, int]:
    """Read ``NAME=INTEGER`` model arguments.

    Raises:
        ConfigError: if one has another form.
    """
    result = {}
    for pair in pairs:
        found = re.fullmatch(r"([a-z_]+)=([0-9]{1,9})", pair)
        if found is None:
            raise ConfigError(f"expected a model argument as NAME=INTEGER, got {pair!r}; write --model-arg width=32")
        result[found[1]] = int(found[2])
    return result
