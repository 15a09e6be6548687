"""Read option values that both training command lines take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from smart_common.names import MAX_NAME, is_name
from smart_train.choices import MAX_ARGUMENTS, MAX_DECIMAL, MAX_INTEGER, Argument
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


def check_arguments(arguments: Mapping[str, Argument]) -> None:
    """Raise ConfigError unless a checkpoint can hold a network's ``arguments``: its reader refuses what is larger."""
    if len(arguments) > MAX_ARGUMENTS:
        raise ConfigError(f"expected at most {MAX_ARGUMENTS} arguments of the network, got {len(arguments)}; use fewer")
    for name, value in arguments.items():
        if not (is_name(name) and _is_bounded(value)):
            raise ConfigError(
                f"{name!a:.100} = {value!a:.100} cannot be stored in a checkpoint, which takes integers up to "
                f"{MAX_INTEGER}, decimals below {MAX_DECIMAL:g}, true, false and printable text of 1 to {MAX_NAME} "
                "characters; choose another argument"
            )


def _is_bounded(value: object) -> bool:
    if isinstance(value, str):
        return is_name(value)
    if isinstance(value, int):
        return abs(value) <= MAX_INTEGER
    return isinstance(value, float) and abs(value) < MAX_DECIMAL  # false for nan too


def _value(text: str) -> Argument:
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20}([eE][+-]?[0-9]{1,2})?|[eE][+-]?[0-9]{1,2})", text, re.ASCII):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)


NORMALISATIONS = "data, imagenet, none or MEAN/STD"
"""What images may be normalised by, for help pages."""


def parse_normalisation(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the numbers of ``MEAN/STD``, each one or several with commas; raises ConfigError."""
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError as error:
        raise ConfigError(f"unknown normalisation {text!a:.100}; there are {NORMALISATIONS}, as in 0.5/0.25") from error
    check_normalisation(mean, std, wanted=f"{text!a:.100}")
    return mean, std


def check_normalisation(mean: Sequence[float], std: Sequence[float], *, wanted: str) -> None:
    """Raise ConfigError if means or standard deviations are out of any range that images could need."""
    if not all(-10 <= number <= 10 for number in mean) or not all(1e-3 <= number <= 10 for number in std):
        raise ConfigError(
            f"expected means from -10 to 10 and standard deviations from 0.001 to 10, got {wanted}; images are "
            "in [0, 1] when they are normalised"
        )


def parse_init(texts: Sequence[str]) -> dict[str, Path]:
    """Read the ``[PATH=]FILE`` of ``--init``: files by the path they are for, under ``""`` the one for all the others.

    Raises:
        ConfigError: if two are for the same.
    """
    found: dict[str, Path] = {}
    for text in texts:
        path, equals, file = text.partition("=")
        if not equals or not re.fullmatch(r"[a-z0-9_-]*", path):
            path, file = "", text
        if not file:
            raise ConfigError(f"expected --init [PATH=]FILE, got {text!a:.100}; write --init weights.pt")
        if path in found:
            raise ConfigError(
                f"two files after --init for {f'path {path}' if path else 'all paths'}; give one, and PATH=FILE for a "
                "path that is to start from another"
            )
        found[path] = Path(file)
    return found
