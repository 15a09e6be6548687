"""What a TensorRT says, and who hears it.

The library keeps the first logger that it is given for as long as any of its objects lives. It speaks through that one
even when whoever gave it has let go of it, which is a segmentation fault (TensorRT-RTX 1.4 and 1.7, tried). So a
process has one logger for each library, for good, and every `Log` hears it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

from smart_common.errors import shortened

_NO_REASON = "it gave no reason"
_KEPT = 20  # messages of a kind that a log keeps; the newest say why a call failed


class Log:
    """What the library says from now on, for as long as this is kept; pass ``trt`` to the library's objects.

    Where several logs live, each hears what is said in the thread that made it, and what is said in threads of the
    library's own.

    Attributes:
        trt: The library's ``ILogger``; it prints nothing.
        errors: The newest 20 errors, oldest first.
        warnings: The newest 20 warnings, oldest first.
    """

    def __init__(self, module: ModuleType, on_line: Callable[[str, str], None] | None = None) -> None:
        """Use `smart_runtime.engines.trt.library.Library.logger`."""
        self.trt = _logger(module)
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.thread = threading.get_ident()
        self._on_line = on_line
        self.trt.logs[id(self)] = self

    def listen(self) -> Log:
        """Forget what was said before, and hear this thread from now on: cheaper than a new log for each call."""
        self.errors.clear()
        self.warnings.clear()
        self.thread = threading.get_ident()
        return self

    @property
    def last_error(self) -> str:
        """The newest error in one short line: of what failed just now; or words that say that there is none."""
        return shortened(self.errors[-1]) if self.errors else _NO_REASON

    @property
    def first_error(self) -> str:
        """The oldest error in one short line: why a build failed, before the errors that follow from it.

        Without a GPU, TensorRT-RTX 1.4 ends with "Cuda Runtime", whatever it refused.
        """
        return shortened(self.errors[0]) if self.errors else _NO_REASON

    def hear(self, severity: str, text: str) -> None:
        """Take note of one message."""
        kept = {"INTERNAL_ERROR": self.errors, "ERROR": self.errors, "WARNING": self.warnings}.get(severity)
        if kept is not None:
            kept.append(text)
            del kept[:-_KEPT]
        if self._on_line is not None:
            self._on_line(severity, text)


def _logger(module: ModuleType) -> Any:
    found = _loggers.get(module)
    # Of two threads that come here at once both take the same one, in one operation of C.
    return _loggers.setdefault(module, _new_logger(module)) if found is None else found


def _new_logger(module: ModuleType) -> Any:
    base: Any = vars(module)["ILogger"]

    class Logger(base):  # type: ignore[misc]  # the library ships no types
        def __init__(self) -> None:
            base.__init__(self)  # not super(): what the binding asks for
            self.logs: WeakValueDictionary[int, Log] = WeakValueDictionary()

        def log(self, severity: Any, msg: str) -> None:
            logs = [log for log in (known() for known in self.logs.valuerefs()) if log is not None]
            for log in [log for log in logs if log.thread == threading.get_ident()] or logs:
                log.hear(severity.name, msg)

    return Logger()


_loggers: dict[ModuleType, Any] = {}
