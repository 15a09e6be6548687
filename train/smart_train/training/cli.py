"""How ``smart-train`` takes its options from a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from smart_train.errors import ConfigError
from smart_train.training.recipe import Value, read_recipe

# Of one call, or of one machine, and not of a training.
NOT_IN_RECIPES = {
    "recipe", "resume", "force", "as_json", "version", "help", "data_dir", "cache_dir", "no_cache", "init"
}  # fmt: skip


def apply_recipe(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make what the recipe says the default of every option, checked as on the command line."""
    if path is None:
        return
    options = {
        o.name: o for o in ctx.command.params if isinstance(o, click.Option) and o.name and o.name not in NOT_IN_RECIPES
    }
    found: dict[str, Any] = {}
    for name, value in read_recipe(path).items():
        if name not in options:
            raise ConfigError(
                f"expected options of smart-train in {path}, got {name!a:.100}; see smart-train --help for their names"
            )
        try:
            found[name] = _option_value(options[name], value, ctx)
        except (click.BadParameter, ValueError) as error:
            reason = error.message if isinstance(error, click.BadParameter) else str(error)
            raise ConfigError(
                f"expected a value for {name} in {path} that --{name.replace('_', '-')} takes, got one it does not: "
                f"{reason.rstrip('.')}"
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


def overruled(ctx: click.Context, option: str, *, by: Sequence[str]) -> bool:
    """Whether ``option`` is the recipe's while one of ``by``, which it belongs to or contradicts, is typed."""
    typed = ParameterSource.COMMANDLINE
    return ctx.get_parameter_source(option) is ParameterSource.DEFAULT_MAP and any(
        ctx.get_parameter_source(name) is typed for name in by
    )
