"""Results of an evaluation, kept as they come: one line of JSON for each chunk of images, path and attack.

Each line says all that its result depends on, so a run that goes on takes what is its own, whatever else is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from smart_train.errors import ConfigError

Right = npt.NDArray[np.bool_]

_RIGHT = "right"
_MARKS = "01"


class Records:
    """The results so far, by what they depend on; written to ``file`` line by line if there is one.

    Args:
        file: where to keep them; None keeps them in memory only.
        resume: take what ``file`` holds; else there must be no such file.

    Raises:
        ConfigError: there is such a file without ``resume``, or it holds something else.
        OSError: the system cannot read or write it.
    """

    def __init__(self, file: Path | None = None, *, resume: bool = False) -> None:
        self._known: dict[str, Right] = {}
        self._output: TextIO | None = None
        if file is None:
            return
        if not resume and file.exists():
            raise ConfigError(f"expected no file {file}, got one; go on with it by --resume, or name another")
        if resume and file.exists():
            self._read(file)
        self._output = file.open("a", encoding="utf-8")

    def __enter__(self) -> Records:
        """Return itself."""
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Close the file."""
        if self._output is not None:
            self._output.close()

    def get(self, key: Mapping[str, Any], *, count: int) -> Right | None:
        """Return which of ``count`` images were right, bool (count,), where that is known."""
        found = self._known.get(_text(key))
        return found if found is not None and len(found) == count else None

    def put(self, key: Mapping[str, Any], right: Right) -> None:
        """Keep which images were right, bool (N,); raises OSError if the system cannot write it."""
        self._known[_text(key)] = right
        if self._output is not None:
            self._output.write(json.dumps({**key, _RIGHT: "".join(_MARKS[int(one)] for one in right)}) + "\n")
            self._output.flush()  # what is written survives if this process is killed

    def _read(self, file: Path) -> None:
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            found = _parsed(line)
            if found is None:
                raise ConfigError(
                    f"expected results of smart-eval in {file}, got something else in line {number}; name another file"
                )
            self._known[found[0]] = found[1]
        if whole < len(content):  # a run that was killed as it wrote
            with file.open("r+b") as damaged:
                damaged.truncate(whole)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _parsed(line: bytes) -> tuple[str, Right] | None:
    """Return what a line's result depends on, and the result; None if it holds something else."""
    try:
        record = json.loads(line)
        marks = record.pop(_RIGHT)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    if not isinstance(marks, str) or not marks or set(marks) - set(_MARKS):
        return None
    return _text(record), np.array([mark == "1" for mark in marks])
