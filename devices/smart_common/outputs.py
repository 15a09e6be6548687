"""What a command writes takes the place of nothing that it reads, of no key and of no file of another kind."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smart_common.errors import OutputError

_IN_A_BUNDLE = ("SHA256SUMS", "manifest.json")
_HEAD = 4096  # bytes that tell a key
_STANDARD_OUTPUT = "standard output"


def _anything(_: Path) -> bool:
    return True


@dataclass(frozen=True)
class Output:
    """A file that a command is to write.

    Attributes:
        option: what the user types for it.
        path: where it goes.
        ours: tells an earlier output of the same kind, which may be replaced, from other files; without it the caller
            asks for ``--force`` itself.
    """

    option: str
    path: Path
    ours: Callable[[Path], bool] = _anything


def check_outputs(outputs: Sequence[Output] = (), *, inputs: Iterable[Path | None], force: bool = False) -> None:
    """Refuse outputs that would cost the user a file, before any work is done; standard output counts as one.

    A place is told by what lies there, not by its spelling: links of both kinds lead to the same file.

    Args:
        outputs: the files to be written.
        inputs: files and folders that the command reads; None and what is missing are passed over.
        force: whether the user allows to replace files of other kinds.

    Raises:
        OutputError: One is an input, lies in a bundle, is a key, is no plain file, or is of another kind without
            ``force``; or two are the same file.
    """
    outputs = [*outputs, *_standard_output()]
    read = [place for place in inputs if place is not None and place.exists()]
    for number, one in enumerate(outputs):
        for place in (*read, *(other.path for other in outputs[:number])):
            if _same(one.path, place):
                raise _would_change(one, place)
        bundle = bundle_around(one.path)
        if bundle is not None:
            raise _would_change(one, bundle)
        if one.path.exists() and not one.path.is_dir():
            _check_replaceable(one, read, force=force)


def _check_replaceable(one: Output, read: Sequence[Path], *, force: bool) -> None:
    if not one.path.is_file():
        raise OutputError(f"{one.option} {one.path} is no plain file and would be replaced by one; name another file")
    if one.path.stat().st_size == 0:  # nothing is lost with it
        return
    if is_key(one.path):
        raise OutputError(f"{one.option} {one.path} is a key, which is never overwritten; name another file")
    if one.ours(one.path):
        return
    for folder in one.path.resolve().parents:
        for place in read:
            if place.is_dir() and _same(folder, place):
                raise _would_change(one, place)
    if not force:
        raise OutputError(
            f"{one.option} {one.path} is a file of another kind and would be replaced; move it, or name another file"
        )


def bundle_around(path: Path) -> Path | None:
    """Return a bundle that a file written at ``path`` would lie in, None if there is none.

    A link there may lead out of the bundle and be replaced all the same.
    """
    there = path.resolve()
    for folder in dict.fromkeys((*there.parents, *(path.parent.resolve() / path.name).parents)):
        if all((folder / name).is_file() for name in _IN_A_BUNDLE):
            return folder
    return None


def is_key(file: Path) -> bool:
    """Whether ``file`` holds a private or public key as PEM; raises OSError if the system cannot read it."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    return b"-----BEGIN " in head and b"KEY-----" in head


def _standard_output() -> Iterator[Output]:
    """Yield the file that standard output goes to, if it goes to one that has a name."""
    try:
        status = os.fstat(1)
        path = Path(os.readlink("/proc/self/fd/1"))  # noqa: PTH115  # a pipe's is no path
        # What cannot be read is no input, and may be a log that another user has opened for us.
        if stat.S_ISREG(status.st_mode) and os.path.samestat(status, path.stat()) and os.access(path, os.R_OK):
            yield Output(_STANDARD_OUTPUT, path)
    except OSError:  # closed, removed, or a system without /proc
        return


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one is not there yet
        return one.resolve() == other.resolve()


def _would_change(one: Output, place: Path) -> OutputError:
    return OutputError(f"{one.option} {one.path} would replace or change {place}; name another file")
