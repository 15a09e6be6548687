"""What `SmartModel.using` keeps: the path that a thread or an asyncio task has asked for, whatever others switch to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(eq=False)
class _Scope:
    """A block of `SmartModel.using`; once it has ended, whoever still sees it looks to the block around it."""

    path: str
    outer: _Scope | None
    ended: bool = False


# The scopes of this thread or task, by the number of the model: each number is given out once, so a context that
# outlives its model keeps nothing of it alive.
_scopes: ContextVar[Mapping[int, _Scope] | None] = ContextVar("smart_runtime_scopes", default=None)
_numbers = itertools.count()


class Scopes:
    """The scopes of one model."""

    def __init__(self) -> None:
        self._number = next(_numbers)

    def path(self) -> str | None:
        """Return the path that the innermost scope of this thread or task asks for; None outside of any."""
        scopes = _scopes.get()
        scope = None if scopes is None else scopes.get(self._number)
        while scope is not None and scope.ended:
            scope = scope.outer
        return None if scope is None else scope.path

    @contextmanager
    def enter(self, path: str) -> Iterator[None]:
        """Ask for ``path`` in this thread or task until the block ends."""
        around = _scopes.get() or {}
        scope = _Scope(path, around.get(self._number))
        token = _scopes.set(MappingProxyType({**around, self._number: scope}))
        try:
            yield
        finally:
            scope.ended = True
            with suppress(ValueError):  # a generator that is closed elsewhere: in this context nothing was set
                _scopes.reset(token)
