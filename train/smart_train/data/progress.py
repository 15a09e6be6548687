"""How a long read tells the screen, which this package does not know, how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, status: str = "", count: int = 1) -> None:
        """``count`` units are done; ``status`` is a few words on how things stand."""


class Progress(Protocol):
    """Shows a bar while work goes on: `smart_common.console.cli.progress` is one."""

    def __call__(self, description: str, *, total: int) -> AbstractContextManager[Advance]:
        """Give a context whose value moves the bar towards ``total`` units."""


def _nothing(status: str = "", count: int = 1) -> None:
    del status, count


@contextmanager
def no_progress(description: str, *, total: int) -> Iterator[Advance]:
    """Show nothing: the default where nobody watches."""
    del description, total
    yield _nothing
