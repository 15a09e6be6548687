"""The host decides: by a function, a file, or a signal."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smart_runtime.errors import InputError
from smart_runtime.inputs import Images
from smart_runtime.memory import RESIDENT
from smart_runtime.policies.policy import PolicyModel, SwitchRequest, check_choice
from smart_runtime.serving import Result

_MOST_BYTES = 256  # of a file whose content is a path's name


class Signal:
    """Lets the path answer that something outside of the program names.

        Signal(lambda: "robust" if door.is_open() else "clean")
        Signal("/run/camera/path", every_s=1)                             # the file holds a path's name
        Signal(signal.SIGUSR1, path="robust", otherwise="clean")          # each signal goes to the other one

    A function and a file are looked at when the model is loaded and after calls. What names no path changes nothing and
    is counted in `status`; so is a file that cannot be read. No file, an empty one, and None from a function say
    nothing.
    """

    def __init__(
        self,
        source: Callable[[], str | None] | str | os.PathLike[str] | int,
        *,
        path: str | None = None,
        otherwise: str | None = None,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decide by ``source``.

        Args:
            source: A function that returns a path's name or None, called after each call, in its thread; a file's name;
                or the number of a Unix signal, whose handler is set while the model is open, by the main thread alone.
                A signal switches at once if all paths are resident, else after the next call.
            path: For a signal only: what it lets answer.
            otherwise: For a signal only: what it lets answer if ``path`` does already; None leaves ``path`` then.
            every_s: How often to look at a file, at most; 1 s by default.
            clock: Returns seconds that never decrease.

        Raises:
            ValueError: An argument is wrong, or does not go with this source.
        """
        number = isinstance(source, int) and not isinstance(source, bool)
        if not (number or callable(source) or isinstance(source, str | os.PathLike)):
            raise ValueError(f"expected a function, a file's name or a signal's number, got {source!r:.60}")
        if number and path is None:
            raise ValueError("a signal needs the path that it lets answer; say path=...")
        if not number and not (path is None and otherwise is None):
            raise ValueError("path and otherwise go with a signal's number; a function or a file names the path itself")
        if number and source not in signal.valid_signals():
            raise ValueError(f"expected the number of a signal, got {source!r:.40}; signal.SIGUSR1 is one")
        is_file = isinstance(source, str | os.PathLike)
        if every_s is not None and not is_file:
            raise ValueError("every_s goes with a file; anything else is looked at after each call")
        every_s = 1.0 if every_s is None else every_s
        if not every_s >= 0:
            raise ValueError(f"expected every_s in seconds, at least 0, got {every_s:g}")
        self._source = source
        self._path, self._otherwise = path, otherwise
        self._every_s = every_s
        self._clock = clock
        self._next_s = float("-inf")
        self._model: PolicyModel | None = None
        self._wanted: str | None = None
        self._bad = 0
        self._previous: Any = None

    def start(self, model: PolicyModel) -> None:
        """Look at the source, or set the signal's handler.

        Raises:
            InputError: As `check_choice`; or the signal cannot be caught, or this is not the main thread.
        """
        self._model = model
        for path in (self._path, self._otherwise):
            if path is not None:
                check_choice(path, model)
        if isinstance(self._source, int):
            try:
                self._previous = signal.signal(self._source, self._handle)
            except (ValueError, OSError) as error:
                self._model = None
                raise InputError(
                    f"no handler can be set for the signal {self._source} here: {error}; load the model in the main "
                    "thread, and take a signal that can be caught, such as SIGUSR1"
                ) from error
            return
        request = self._read()
        if request is not None:
            model.switch(request.path, request.reason)

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:  # noqa: ARG002  # only the source counts
        """Return what the source asks for now, which may be the path that answers already."""
        return self._read()

    def _handle(self, number: int, _: object) -> None:
        model = self._model
        if model is None:  # stopped by another thread than the main one, which this is
            self._put_back()
            signal.raise_signal(number)
            return
        if self._path is None:
            return
        already = (self._wanted or model.path) == self._path
        self._wanted = self._otherwise if already and self._otherwise is not None else self._path
        if model.memory().mode == RESIDENT:  # else it would load a path, in the middle of anything
            wanted, self._wanted = self._wanted, None
            try:
                model.switch(wanted, signal.Signals(number).name)
            except Exception:  # it would come out of whatever the main thread is doing
                self._bad += 1

    def _read(self) -> SwitchRequest | None:
        if isinstance(self._source, int):
            wanted, self._wanted = self._wanted, None
            return None if wanted is None else SwitchRequest(wanted, signal.Signals(self._source).name)
        name, where = self._named()
        if name is None:
            return None
        if self._model is None or name not in self._model.paths:
            self._bad += 1
            return None
        return SwitchRequest(name, where)

    def _named(self) -> tuple[str | None, str]:
        """Return the path's name that the source gives now, if any, and the reason that goes with it."""
        if callable(self._source):
            return self._source(), "the host's function says so"
        if (now := self._clock()) < self._next_s:
            return None, ""
        self._next_s = now + self._every_s
        file = Path(self._source)  # type: ignore[arg-type]  # a number does not come here
        try:
            text = _content(file)
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError):
            self._bad += 1
            return None, ""
        return text or None, f"{file.name} says so"

    def status(self) -> Mapping[str, Any]:
        """Return how often the source named no path."""
        return {"bad_total": self._bad}

    def stop(self) -> None:
        """Put back the handler that the signal had: now, or outside of the main thread when the next one comes."""
        if isinstance(self._source, int) and self._model is not None:
            self._model = None
            if threading.current_thread() is threading.main_thread():
                self._put_back()

    def _put_back(self) -> None:
        if isinstance(self._source, int):
            signal.signal(self._source, signal.SIG_DFL if self._previous is None else self._previous)


def _content(file: Path) -> str:
    """Return the text of a small plain file; ValueError, OSError for anything else."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{file} is no plain file")
        data = os.read(descriptor, _MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{file} holds more than a name")
    return data.decode("utf-8").strip()
