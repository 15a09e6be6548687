"""The options that say where data lies, for every command that reads some."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smart_common.console import cli as house
from smart_common.files import default_cache_dir
from smart_train.errors import ConfigError

if TYPE_CHECKING:
    from smart_train.data.images import ImageSet

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class DataPlaces:
    """Where a command finds data and keeps what it has read.

    Attributes:
        data_dir: where published sets lie.
        cache_dir: None for no cache, which is also the default of a user without a home directory.
    """

    data_dir: Path
    cache_dir: Path | None

    def load(self, spec: str) -> ImageSet:
        """Read the data set ``spec`` with a bar for pictures and for an archive; raises as `load_data` does."""
        from smart_train.data.load import load_data  # noqa: PLC0415  # NumPy

        return load_data(spec, data_dir=self.data_dir, cache_dir=self.cache_dir, progress=house.progress)


def data_options(function: _F) -> _F:
    """Add ``--data-dir``, ``--cache-dir`` and ``--no-cache``, passed to the command as one ``places: DataPlaces``."""

    @click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default="data",
        envvar="SMART_EDGE_DATA",
        show_default=True,
        show_envvar=True,
        help="Where cifar10, cifar100, svhn and stl10 lie, as published.",
    )
    @click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        help="Where images are kept once read.  [default: $XDG_CACHE_HOME/smart-edge or ~/.cache/smart-edge]",
    )
    @click.option("--no-cache", is_flag=True, help="Read the data anew and keep nothing.")
    @functools.wraps(function)
    def command(*, data_dir: Path, cache_dir: Path | None, no_cache: bool, **others: Any) -> Any:
        if no_cache and cache_dir is not None:
            raise ConfigError("--cache-dir and --no-cache cannot be combined: --no-cache reads everything anew")
        places = DataPlaces(data_dir, None if no_cache else cache_dir or default_cache_dir())
        return function(places=places, **others)

    return command  # type: ignore[return-value]  # it takes three options where the function takes places
