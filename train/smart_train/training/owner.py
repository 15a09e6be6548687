"""One training at a time writes a checkpoint and what lies beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from smart_common.files import owning
from smart_train.errors import ConfigError
from smart_train.training.history import history_path

_OWNED: ContextVar[frozenset[Path]] = ContextVar("owned", default=frozenset())


@contextmanager
def owning_output(checkpoint: Path) -> Iterator[None]:
    """Let no other training write ``checkpoint`` and what lies beside it until the block ends; blocks may be nested.

    Raises:
        ConfigError: if another one is running, in this process or another; one that was killed owns nothing.
    """
    history = history_path(checkpoint)  # x.pt and x.pth share one
    place = history.absolute()
    if place in _OWNED.get():
        yield
        return
    with owning(history) as mine:
        if not mine:
            raise ConfigError(
                f"another training is writing {checkpoint} or {history.name}; wait for it, or name another with -o"
            )
        before = _OWNED.set(_OWNED.get() | {place})
        try:
            yield
        finally:
            _OWNED.reset(before)
