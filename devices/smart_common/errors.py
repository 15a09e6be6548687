"""What every package raises, and the root of every exception that smart-edge raises on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from smart_common.names import printable

_MAX_QUOTED = 600  # characters
_LISTED = 10  # names


class SmartError(Exception):
    """Something the user can mend: one sentence that says what is wrong, then the remedy.

    Command lines print it after ``error:`` and exit with status 1; it never shows a traceback. Names of files and what
    stands in them reach terminals and logs in it, so its text is printable, whatever they are.
    """

    def __str__(self) -> str:
        """Return the sentence, in one line."""
        return printable(super().__str__())


class MissingExtraError(SmartError):
    """An optional library that the call needs is not installed; the message names the pip command."""


class OutputError(SmartError):
    """A file or folder that cannot be written where it was asked for."""


def is_shortage(error: Exception) -> bool:
    """Whether ``error`` says that memory does not suffice, in Python's words, NumPy's or torch's."""
    # Of torch: on a CPU only the words tell.
    is_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_torch)


def alternatives(name: str, known: Iterable[str]) -> str:
    """Return ``name``, which is none of the ``known``, with the one that may be meant, else with all that there are."""
    known = list(known)
    near = _nearest(name, known)
    return f"{shortened(name)!a:.102}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")


def is_nearly(name: str, known: Iterable[str]) -> bool:
    """Whether ``name`` is one of the ``known`` but for a slip: `alternatives` would say which may be meant."""
    return bool(_nearest(name, known))


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    from difflib import get_close_matches  # noqa: PLC0415  # every command's `--help` reads this module

    return get_close_matches(name, known, n=1)


def shortened(text: str) -> str:
    """Return what a library says, or what stands in a stranger's file, as one short printable line for an error."""
    line = printable(" ".join(text[:100_000].split()))
    return line if len(line) <= _MAX_QUOTED else f"{line[:_MAX_QUOTED]}..."


def few(names: Sequence[object]) -> str:
    """Return up to ten of ``names``, each as `shortened` shows it, and how many more there are."""
    listed = ", ".join(shortened(str(name)) for name in names[:_LISTED])
    return listed if len(names) <= _LISTED else f"{listed} and {len(names) - _LISTED} more"
