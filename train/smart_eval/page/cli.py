"""The options of the report page."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def report_options(function: _F) -> _F:
    """Add ``--report`` and ``--include``, passed to the command as ``page``, a `PageOutput`."""

    @click.option(
        "--report",
        metavar="FILE.html",
        type=click.Path(path_type=Path),
        help="Write a page for people there: one file that needs nothing else.",
    )
    @click.option(
        "--include",
        metavar="FILE.json",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Show this saved result of smart-export --json or smart-bench --json on the page too; may be repeated.",
    )
    @functools.wraps(function)
    def with_page(*args: Any, report: Path | None, include: tuple[Path, ...], **options: Any) -> Any:
        from smart_eval.page.output import PageOutput  # noqa: PLC0415  # torch, which --help does not wait for

        if report is None and include:
            raise click.UsageError("--include adds saved results to the page that --report writes: give it too.")
        return function(*args, page=PageOutput(report, include), **options)

    return with_page  # type: ignore[return-value]  # click's own decorators change the signature likewise
