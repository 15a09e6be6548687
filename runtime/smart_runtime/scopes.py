"""What `SmartModel.using` keeps: the path that a thread or an asyncio task has asked for, whatever others switch to."""

from __future__ import annotations

import io
import itertools
from collections.abc import Generator, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias


@dataclass(eq=False)
class Scope:
    """A block of `SmartModel.using`; one that has ended asks for nothing: whoever still sees it looks around it."""

    path: str
    outer: Scope | None = None
    ended: bool = False


# The scopes of this thread or task, by the number of the model: each number is given out once, so a context that
# outlives its model keeps nothing of it alive.
_Scopes: TypeAlias = Mapping[int, Scope]
_scopes: ContextVar[_Scopes | None] = ContextVar("smart_runtime_scopes", default=None)
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

    def enter(self, scope: Scope) -> Token[_Scopes | None]:
        """Let ``scope`` ask in this thread or task until it has ended; `leave` takes what this returns."""
        around = {number: live for number, one in (_scopes.get() or {}).items() if (live := _live(one)) is not None}
        scope.outer = around.get(self._number)
        return _scopes.set(MappingProxyType({**around, self._number: scope}))

    def leave(self, token: Token[_Scopes | None]) -> None:
        """Forget a scope that has ended."""
        with suppress(ValueError):  # a block that is closed elsewhere: in this context nothing was set
            _scopes.reset(token)


def _live(scope: Scope | None) -> Scope | None:
    while scope is not None and scope.ended:  # one whose end an interrupt struck is still there
        scope = scope.outer
    return scope


class Block(io.IOBase):
    """Runs a generator up to its one ``yield``, and, when a ``with`` block ends, what follows that ``yield``.

    As `contextlib.contextmanager` does, but for interrupts, which strike where a function of Python's begins: its
    ``__exit__`` may be struck before it does anything, and the generator waits for as long as the exception is kept.
    `io.IOBase.__exit__` is C and calls ``close``, here the generator's, which is C too: it raises GeneratorExit at
    the ``yield``, and the first thing that can be struck is the second line of the generator's ``finally``.
    """

    def __init__(self, steps: Generator[Any, None, None]) -> None:
        self._steps = steps
        self.close = steps.close  # type: ignore[method-assign]  # that is what it is for

    def __enter__(self) -> Any:
        try:
            for entered in self._steps:
                return entered
        except BaseException:
            self.close()
            raise
        raise RuntimeError("a block of `using` runs once; call it again for the next")
