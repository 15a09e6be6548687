"""The options that name a network, for every command that builds one; only here is a user's own code imported."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from smart_common.errors import alternatives
from smart_train.choices import ARCHITECTURES, FACTORY_FILE, FACTORY_FORM, Argument, is_factory_name
from smart_train.errors import ConfigError
from smart_train.options import parse_arguments

if TYPE_CHECKING:
    from smart_train.architectures.custom import Factory
    from smart_train.checkpoint.format import Checkpoint

    _ParamType: TypeAlias = click.ParamType[str]
else:
    _ParamType = click.ParamType  # before click 8.4 it takes no type

_F = TypeVar("_F", bound=Callable[..., Any])


class NetworkName(_ParamType):
    """A network of ours, or a factory of the user's own as PACKAGE.MODULE:FACTORY or FILE.py:FACTORY."""

    name = "network"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is, if it is one."""
        text = str(value)
        if text not in ARCHITECTURES and not is_factory_name(text):
            self.fail(f"unknown {alternatives(text, [*ARCHITECTURES, FACTORY_FORM, FACTORY_FILE])}", param, ctx)
        return text


def network_file(model: str | None) -> Path | None:
    """Return the file that ``FILE.py:FACTORY`` names, None for other networks."""
    file = (model or "").rpartition(":")[0]
    return Path(file) if file.endswith(".py") else None


@dataclass(frozen=True)
class OwnNetwork:
    """What the command line says of the network in a checkpoint: nothing, unless it is one of the user's own.

    ``file`` is the user's code, if it was named as a file.
    """

    factory: Factory | None
    arguments: Mapping[str, Argument]
    file: Path | None = None

    def load(self, path: Path) -> Checkpoint:
        """Read a checkpoint; raises as `load_checkpoint` does."""
        from smart_train.checkpoint.format import load_checkpoint  # noqa: PLC0415  # torch

        return load_checkpoint(path, factory=self.factory, arguments=self.arguments)


def own_network_options(function: _F) -> _F:
    """Add ``--model`` and ``--model-arg``, passed to the command as one ``own: OwnNetwork`` that reads checkpoints."""

    @click.option(
        "--model",
        metavar=FACTORY_FORM,
        help=f"The factory of a network of your own, or {FACTORY_FILE}: imports it, as no checkpoint does.",
    )
    @click.option(
        "--model-arg", multiple=True, metavar="NAME=VALUE", help="An argument for it in the place of the checkpoint's."
    )
    @functools.wraps(function)
    def command(*, model: str | None, model_arg: tuple[str, ...], **others: Any) -> Any:
        if model_arg and model is None:
            raise ConfigError(
                "--model-arg needs --model beside it: a network of ours has its arguments in the checkpoint"
            )
        factory = None
        if model is not None:
            from smart_train.architectures.custom import import_factory  # noqa: PLC0415  # torch

            factory = import_factory(model)
        return function(own=OwnNetwork(factory, parse_arguments(model_arg), network_file(model)), **others)

    return command  # type: ignore[return-value]  # it takes two options where the function takes one
