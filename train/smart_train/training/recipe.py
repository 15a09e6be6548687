"""Recipes: the options of a whole ``smart-train`` run in a TOML or JSON file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from smart_common.documents import parse_document, read_limited
from smart_train.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value: TypeAlias = "str | int | float | bool | Mapping[str, str | int | float | bool]"

RECIPE = f"{__name__}.file"
"""Where click's context keeps which file was read."""

MAX_BYTES = 2**20  # of a file with some thirty options

_EXAMPLE = 'a line like epochs = 15 or eps = "8/255" for each option'


def read_recipe(path: Path) -> dict[str, Value]:
    """Return the options in ``path``, by their names on the command line with ``_`` for ``-``.

    A value is text, a number or true/false; ``model_arg`` is a table of such values.

    Raises:
        ConfigError: if the file is missing, too large, neither TOML nor JSON, says something twice, or holds lists.
    """

    def damaged(what: str) -> ConfigError:
        return ConfigError(f"{path} is no recipe: {what}; write {_EXAMPLE}")

    kind = path.suffix.lower()
    if kind not in {".toml", ".json"}:
        raise ConfigError(f"{path} does not end in .toml or .json; rename it")
    raw = read_limited(path, what="recipe", max_bytes=MAX_BYTES, error=ConfigError)
    found: Mapping[str, Any]
    if kind == ".toml":
        try:
            found = tomllib.loads(raw.decode())
        except (ValueError, RecursionError) as error:  # the parser's own errors and those of UTF-8 are ValueErrors
            raise damaged(" ".join(str(error).split())) from error
    else:
        found = parse_document(raw, damaged=damaged).raw
    result: dict[str, Value] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name in result:
            raise ConfigError(f"{name} stands twice in {path}, with - and with _; remove one")
        table = isinstance(value, dict) and all(isinstance(v, str | int | float) for v in value.values())
        if not table and not isinstance(value, str | int | float):
            raise ConfigError(
                f"expected text, a number or true or false for {key} in {path}, got {value!a:.100}; write {_EXAMPLE}"
            )
        result[name] = value
    return result
