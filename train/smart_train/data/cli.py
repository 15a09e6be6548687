"""The options that say where data lies, for every command that reads some."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from smart_common.console import cli as house
from smart_common.files import default_cache_dir
from smart_common.outputs import Output, check_outputs
from smart_train.errors import ConfigError

if TYPE_CHECKING:
    from smart_train.data.images import ImageSet

    _ParamType: TypeAlias = click.ParamType[tuple[int, int]]
else:
    _ParamType = click.ParamType  # before click 8.4 it takes no type

_F = TypeVar("_F", bound=Callable[..., Any])


class ImageSize(_ParamType):
    """``224`` or ``HEIGHTxWIDTH``, as (height, width)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return both sides; what is no size ends the command."""
        if isinstance(value, tuple):
            return value
        sides = str(value).lower().split("x")
        if not 1 <= len(sides) <= 2 or not all(side.isascii() and side.isdigit() and len(side) < 9 for side in sides):
            self.fail(f"{value!a} is no image size; give 224, or 192x256 for height and width.", param, ctx)
        return int(sides[0]), int(sides[-1])


@dataclass(frozen=True)
class DataPlaces:
    """Where a command finds data and keeps what it has read.

    Attributes:
        data_dir: where published sets lie.
        cache_dir: None for no cache, which is also the default of a user without a home directory.
        max_broken: pictures of a folder that may be left out because they cannot be read.
    """

    data_dir: Path
    cache_dir: Path | None
    max_broken: int = 0

    def load(self, spec: str, *, image_size: tuple[int, int] | None = None) -> ImageSet:
        """Read the data set ``spec`` with a bar for pictures and for an archive; raises as `load_data` does."""
        from smart_train.data.load import load_data  # noqa: PLC0415  # NumPy

        return load_data(spec, **vars(self), image_size=image_size, progress=house.progress)


def data_place(spec: str | None) -> Path | None:
    """Return the file or folder that ``folder:DIR`` or ``npz:FILE`` names; None for data with a name of its own."""
    _, colon, place = (spec or "").partition(":")
    with suppress(RuntimeError):  # a ~ of nobody's, which the reader refuses
        return Path(place).expanduser() if colon and place else None
    return None


def data_options(function: _F) -> _F:
    """Add ``--data-dir``, ``--cache-dir``, ``--no-cache`` and ``--max-broken``, passed as ``places: DataPlaces``."""

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
    @click.option(
        "--max-broken",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Leave out up to N pictures of a folder that cannot be read.",
    )
    @functools.wraps(function)
    def command(*, data_dir: Path, cache_dir: Path | None, no_cache: bool, max_broken: int, **others: Any) -> Any:
        if no_cache and cache_dir is not None:
            raise ConfigError("--cache-dir and --no-cache cannot be combined: --no-cache reads everything anew")
        if cache_dir is not None:
            check_outputs([Output("--cache-dir", cache_dir / "data")], inputs=[])
        places = DataPlaces(data_dir, None if no_cache else cache_dir or default_cache_dir(), max_broken)
        return function(places=places, **others)

    return command  # type: ignore[return-value]  # it takes several options where the function takes places
