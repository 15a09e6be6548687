"""Read option values that both training command lines take."""

from __future__ import annotations

from fractions import Fraction

from smart_train.errors import ConfigError


def parse_eps(text: str) -> float:
    """Read eps in pixel units, a decimal or a fraction: ``0.3``, ``8/255``.

    Raises:
        ConfigError: if it is neither.
    """
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"expected eps as a decimal or fraction, got {text!r}; write 0.3 or 8/255") from error


def parse_arguments(pairs: tuple[str, ...]) -> dict[str, int]:
    """Read ``NAME=INTEGER`` model arguments.

    Raises:
        ConfigError: if one has another form.
    """
    result = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value.isascii() or not value.isdigit():
            raise ConfigError(f"expected a model argument as NAME=INTEGER, got {pair!r}; write --model-arg width=32")
        result[name] = int(value)
    return result
