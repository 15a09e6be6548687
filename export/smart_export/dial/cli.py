"""The options that ask for mixes, and what is printed of mixes and temperatures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from smart_export.build import BuildResult
    from smart_export.mixing import WantedMixes

_F = TypeVar("_F", bound=Callable[..., Any])


def mix_options(function: _F) -> _F:
    """Add ``--mix`` and ``--mix-clean``, passed to the command as one ``mixes``, a function that returns the mixes."""

    @click.option(
        "--mix",
        type=float,
        multiple=True,
        metavar="SHARE",
        help="Add a path mix-50 between the two, for a share of 0.5 of the robust one: it runs both and mixes their "
        "probabilities; may be repeated.",
    )
    @click.option(
        "--mix-clean",
        type=float,
        metavar="ACCURACY",
        help="Add the mix with the largest share, in whole percents, that is right on at least this fraction of the "
        "clean images that judge, the checkpoint's samples unless --data: 0.97.",
    )
    @functools.wraps(function)
    def command(*, mix: tuple[float, ...], mix_clean: float | None, **others: Any) -> Any:
        def mixes() -> WantedMixes:
            from smart_export.mixing import WantedMixes  # noqa: PLC0415  # loads torch

            return WantedMixes(shares=mix, clean=mix_clean)

        return function(mixes=mixes, **others)

    return command  # type: ignore[return-value]  # it takes two parameters where the function takes one


def mix_lines(result: BuildResult) -> Iterator[str]:
    """Yield what calibrates each path, and what became of each mix."""
    for name, one in result.temperatures.items():
        yield one.sentence(name)
    for mix in result.mixes:
        gate = mix.gate
        yield (
            f"{mix.name}: {1 - mix.share:.0%} {mix.paths[0]} and {mix.share:.0%} {mix.paths[1]}, clean accuracy "
            f"{gate.clean_accuracy.after:.3f}, {gate.robust_accuracy.after:.3f} on images attacked on {mix.paths[1]} "
            f"alone (smart-eval attacks the mix itself); max. difference {mix.agreement.max_rel_diff:.1e}"
        )
