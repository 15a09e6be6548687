"""Recipes: the options of a whole ``smart-train`` run in a TOML or JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from smart_train.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value: TypeAlias = "str | int | float | bool | Mapping[str, str | int | float | bool]"

MAX_BYTES = 2**20  # of a file with some thirty options

_EXAMPLE = 'a line like epochs = 15 or eps = "8/255" for each option'


def read_recipe(path: Path) -> dict[str, Value]:
    """Return the options in ``path``, by their names on the command line with ``_`` for ``-``.

    A value is text, a number or true/false; ``model_arg`` is a table of such values.

    Raises:
        ConfigError: if the file is missing, too large, neither TOML nor JSON, says something twice, or holds lists.
    """
    readers: dict[str, Callable[[str], object]] = {".toml": tomllib.loads, ".json": _json}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"expected a recipe ending in .toml or .json, got {path}; rename it")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"expected a recipe at {path}, got {error.strerror}; check the path") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"expected a recipe of at most {MAX_BYTES} bytes, got more in {path}; it is not one")
    try:
        found = readers[path.suffix.lower()](raw.decode())
    except (ValueError, RecursionError) as error:  # both parsers' errors and those of UTF-8 are ValueErrors
        reason = " ".join(str(error).split())
        raise ConfigError(f"expected a recipe with {_EXAMPLE}, got a file {path} that is none ({reason})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"expected a recipe with {_EXAMPLE}, got {type(found).__name__} in {path}")
    result: dict[str, Value] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name in result:
            raise ConfigError(f"expected each option once in {path}, got {name} twice, with - and with _; remove one")
        table = isinstance(value, dict) and all(isinstance(v, str | int | float) for v in value.values())
        if not table and not isinstance(value, str | int | float):
            raise ConfigError(
                f"expected text, a number or true or false for {key} in {path}, got {value!a:.100}; write {_EXAMPLE}"
            )
        result[name] = value
    return result


def _json(text: str) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name twice in one object")
        return found

    return json.loads(text, object_pairs_hook=once)
