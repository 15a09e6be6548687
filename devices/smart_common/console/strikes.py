"""Ctrl-C that is not lost where a library, struck while it is imported, swallows it or makes another error of it.

Python raises KeyboardInterrupt wherever it stands: inside of ``except:``, of a finalizer, which cannot raise, or of C
code that tries again. So a strike is remembered too, and commands ask for it. Only entry points watch for strikes: who
calls a command from Python has a handler of their own. This module imports nothing of ours, to be the first.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as type checkers know it; `typing` takes longer than all else here
if TYPE_CHECKING:
    from types import FrameType, TracebackType

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells say."""

_struck = False


class Watching:
    """Remembers Ctrl-C in its block, where a command runs, and ends the process with status 130 if there was one.

    SIGINT stays as it is in a thread, and where it is ignored, as after nohup, or has a handler of somebody else's.
    """

    def __enter__(self) -> None:
        try:
            import signal  # noqa: PLC0415  # here a strike is seen already

            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, _strike)
        except ValueError:  # a thread, which may set no handler
            return
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        import signal  # noqa: PLC0415  # as above

        if signal.getsignal(signal.SIGINT) is _strike:  # nothing is left to tell: Python would show where it stands
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        if _struck or isinstance(error, KeyboardInterrupt):
            sys.exit(INTERRUPTED)


def raise_if_struck() -> None:
    """Raise KeyboardInterrupt if Ctrl-C came and nothing was said of it yet."""
    if _struck:
        raise KeyboardInterrupt


def forget() -> None:
    """Take a strike as dealt with; the next one counts again."""
    global _struck  # noqa: PLW0603  # of the process, as signals are
    _struck = False


def _strike(_: int, __: FrameType | None) -> None:
    global _struck  # noqa: PLW0603  # as above
    _struck = True
    sys.unraisablehook = _ignore
    raise KeyboardInterrupt


def _ignore(unraisable: sys.UnraisableHookArgs) -> None:
    """Say nothing of a strike inside of a finalizer: the command ends by itself, and says so."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
