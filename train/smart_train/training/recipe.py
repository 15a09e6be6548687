"""Options that do not come from the command line: those of a recipe, and those of the training that is resumed.

A recipe is a TOML or JSON file with the options of a whole ``smart-train`` run; a training keeps its own in that form.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import click
from click.core import ParameterSource

from smart_common.documents import parse_document, read_limited
from smart_train.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value: TypeAlias = "str | int | float | bool | Mapping[str, str | int | float | bool]"

# Of one call, or of one machine, and not of a training.
NOT_IN_RECIPES = {
    "recipe", "help_method", "resume", "force", "as_json", "version", "help", "quiet", "verbose", "data_dir",
    "cache_dir", "no_cache", "init",
}  # fmt: skip
_OUTPUTS = {"output", "plot", "tensorboard"}  # for a recipe to say, and for a resumed training to be told again
_PLACES = {"data_dir", "init"}  # for a resumed training to remember, which goes on where it was

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


def apply_recipe(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make what the recipe says the default of every option, checked as on the command line."""
    if path is not None:
        _set_defaults(ctx, read_recipe(path), path, names=_names(ctx) - NOT_IN_RECIPES)


def apply_resume(ctx: click.Context, _: click.Parameter, checkpoint: str | None) -> str | None:
    """Make the options of the training that wrote ``checkpoint`` the default of every option."""
    if checkpoint:
        from smart_train.training.state import read_options  # noqa: PLC0415  # torch

        _set_defaults(ctx, read_options(Path(checkpoint)), Path(checkpoint), names=_kept(ctx))
    return checkpoint


def options_to_keep(ctx: click.Context) -> dict[str, Value]:
    """Return in the form of a recipe the options of ``ctx`` that differ from the defaults, places as absolute paths."""
    kept: dict[str, Value] = {}
    for name in sorted(_kept(ctx)):
        value = ctx.params[name]
        if value is None or ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        if isinstance(value, tuple):
            kept[name] = dict(pair.split("=", 1) for pair in value)
        elif isinstance(value, Path):
            kept[name] = str(value.absolute())
        elif name == "data" and ":" in value:
            kind, _, place = value.partition(":")
            kept[name] = f"{kind}:{Path(place).expanduser().absolute()}"
        else:
            kept[name] = value
    return kept


def refuse_other_options(ctx: click.Context, checkpoint: Path) -> None:
    """Raise ConfigError if an option is typed that is not what the resumed training has."""
    kept = ctx.default_map or {}
    for option in ctx.command.params:
        name = option.name or ""
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name not in _kept(ctx) | {"output"}:
            continue
        theirs = kept[name] if name in kept else option.get_default(ctx)
        if option.type_cast_value(ctx, theirs) != ctx.params[name]:
            raise ConfigError(
                f"{option.opts[-1]} is not what the training of {checkpoint} was started with; leave it out to go on, "
                "or start another one with -o"
            )


def _names(ctx: click.Context) -> set[str]:
    return {option.name for option in ctx.command.params if isinstance(option, click.Option) and option.name}


def _kept(ctx: click.Context) -> set[str]:
    return _names(ctx) - NOT_IN_RECIPES - _OUTPUTS | _PLACES


def _set_defaults(ctx: click.Context, values: Mapping[str, Value], path: Path, *, names: set[str]) -> None:
    if ctx.default_map:
        raise ConfigError("--recipe and --resume CKPT cannot be combined: the training has its options already")
    options = {option.name: option for option in ctx.command.params if isinstance(option, click.Option)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(
                f"{name!a:.100} in {path} is no option for a recipe; see smart-train --help for their names"
            )
        try:
            found[name] = _option_value(options[name], value, ctx)
        except (click.BadParameter, ValueError) as error:
            reason = error.message if isinstance(error, click.BadParameter) else str(error)
            raise ConfigError(
                f"--{name.replace('_', '-')} does not take what {path} has for {name}: {reason.rstrip('.')}"
            ) from error
    ctx.default_map = found


def _option_value(option: click.Option, value: Value, ctx: click.Context) -> Any:
    """Return ``value`` as the command line would give it; raise click.BadParameter or ValueError."""
    if option.multiple:
        if isinstance(value, str | int | float):
            raise ValueError(f"a table is wanted, [{option.name}] and lines like width = 32")
        return [f"{key}={number}" for key, number in value.items()]
    if value is True and isinstance(option.flag_value, str):
        return option.flag_value  # an option that may stand alone, like --plot
    if option.is_flag != isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("true or false is wanted" if option.is_flag else "text or a number is wanted")
    # Through text, so that 7.5 epochs are refused and not cut to 7.
    return value if option.is_flag else option.type.convert(str(value), option, ctx)
