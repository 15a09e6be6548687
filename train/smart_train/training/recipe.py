"""Recipes: the options of a whole ``smart-train`` run in a TOML or JSON file, which may be a stranger's."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from smart_common.documents import parse_document, read_limited
from smart_common.errors import shortened
from smart_train.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value: TypeAlias = "str | int | float | bool | Mapping[str, str | int | float | bool]"

RECIPE = f"{__name__}.file"
"""Where click's context keeps which file was read."""

MAX_BYTES = 2**20  # of a file with some thirty options
_MAX_TEXT = 1000  # characters of a value
_MAX_NUMBER = 2**31  # either way: above any count, size or rate of a training
_MAX_NESTING = 8  # dots of a key, or brackets, in one line
_QUOTED_OR_COMMENT = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'|#.*""")

_EXAMPLE = 'a line like epochs = 15 or eps = "8/255" for each option'


def read_recipe(path: Path) -> dict[str, Value]:
    """Return the options in ``path``, by their names on the command line with ``_`` for ``-``.

    A value is text, a number or true/false; ``model_arg`` is a table of such values.

    Raises:
        ConfigError: if the file is missing, too large, neither TOML nor JSON, says something twice, holds lists, a text
            of more than 1,000 characters, or a number of 2^31 or more either way.
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
            text = raw.decode()
            _check_nesting(text)
            found = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # the parser's own errors and those of UTF-8 are ValueErrors
            raise damaged(shortened(str(error))) from error
    else:
        found = parse_document(raw, damaged=damaged).raw
    result: dict[str, Value] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name in result:
            raise ConfigError(f"{shortened(name)} stands twice in {path}, with - and with _; remove one")
        table = isinstance(value, dict) and all(isinstance(v, str | int | float) for v in value.values())
        if not table and not isinstance(value, str | int | float):
            raise ConfigError(
                f"expected text, a number or true or false for {shortened(key)} in {path}, got {value!a:.100}; write "
                f"{_EXAMPLE}"
            )
        for number_or_text in value.values() if isinstance(value, dict) else (value,):
            if not _is_bounded(number_or_text):
                raise ConfigError(
                    f"--{shortened(name).replace('_', '-')} does not take what {path} has for {shortened(key)}: a text "
                    f"of more than {_MAX_TEXT} characters, or a number of {_MAX_NUMBER} or more"
                )
        result[name] = value
    return result


def _is_bounded(value: str | float) -> bool:
    return len(value) <= _MAX_TEXT if isinstance(value, str) else abs(value) < _MAX_NUMBER  # false for nan too


def _check_nesting(text: str) -> None:
    """Refuse what takes a TOML parser memory and time that grow as a power of it: a key of many parts, deep brackets.

    Line by line, which a text of several lines could mislead: no option needs one.
    """
    for line in text.split("\n"):
        if '"""' in line or "'''" in line:
            raise ValueError("a text of several lines")
        bare = _QUOTED_OR_COMMENT.sub("", line)
        if bare.count(".") > _MAX_NESTING or sum(map(bare.count, "[{")) > _MAX_NESTING:
            raise ValueError(f"more than {_MAX_NESTING} dots or brackets in a line")
