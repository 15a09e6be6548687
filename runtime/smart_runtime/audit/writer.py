"""Writes the lines of an audit log into a file that grows, with older ones beside it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smart_common.version import version
from smart_runtime.audit.chain import (
    BEGIN,
    FORMAT,
    MAX_LINE,
    NOTHING,
    SEAL,
    Line,
    is_begin,
    line_of,
    parse_line,
    plain,
    sealed_bytes,
)
from smart_runtime.errors import AuditError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FRAGMENT = 300  # bytes of a line that was cut off which are kept


class Event(NamedTuple):
    """Something to write down: its name, when it was (Unix time in ns, seconds of the monotonic clock), its fields."""

    name: str
    time_ns: int
    monotonic_s: float
    fields: Mapping[str, Any]


class Chain(NamedTuple):
    """Where the chain stands: the number of the next line, and the hash of the last one."""

    seq: int = 0
    head: str = NOTHING


class Writer:
    """Appends to the log in ``file``; for one thread. ``head`` is the hash of the last line on the disk.

    What the system refuses raises OSError, and the file is as it was; `lost` lines are owned up to in the next one that
    is written.
    """

    def __init__(self, file: Path, *, max_bytes: int, keep: int, key: Ed25519PrivateKey | None) -> None:
        self._path = file
        self._max_bytes = max_bytes
        self._keep = keep
        self._key = key
        self._file: int | None = None  # the descriptor, locked for us
        self._size = 0
        self._chain = Chain()
        self.head = NOTHING  # of the last line that `sync` brought to the disk
        self._log = ""
        self.disturbed = 0  # how often somebody removed, replaced or changed the file
        self._unsaid = 0  # lines that were lost since the last that was written
        self._why = ""

    def open(self, first: Event) -> None:
        """Go on with the log that is there, or begin one, and write ``first``.

        Raises:
            AuditError: Something else lies there, or another model writes it.
            OSError: The system refuses.
        """
        torn = b""
        try:
            self._check_rotated()
            self._file = self._opened()
            if self._file is None:
                self._find_earlier()
            else:
                torn = self._resume(self._file)
        except BaseException:
            self.close()
            raise
        if torn:
            cut = {"bytes": len(torn), "fragment": ascii(torn[:_FRAGMENT])}
            self.write([Event("torn", first.time_ns, first.monotonic_s, cut), first])
        else:
            self.write([first])

    def _opened(self) -> int | None:
        """Return the descriptor of the log that is there, locked; None if nothing is there."""
        try:
            file = os.open(self._path, os.O_RDWR | _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
                raise self._refused("is no plain file") from error
            raise
        try:
            self._check_plain(file)
            self._lock(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _check_plain(self, file: int) -> None:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise self._refused("is no plain file")

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EAGAIN}:
                raise self._refused("is being written by another model") from error
            # else a file system without locks, which leaves it to its users to start one writer only

    def _resume(self, file: int) -> bytes:
        """Find where the chain stands; cut off and return what a crash has left of a last line."""
        self._size = os.fstat(file).st_size
        if self._size == 0:
            self._find_earlier()
            return b""
        first, last, end = _ends(file, self._size)
        if first is None or last is None or not is_begin(first):
            raise self._refused("is no audit log, or was changed: its first or last line is none")
        torn = os.pread(file, self._size - end, end)
        if torn:
            os.ftruncate(file, end)
        self._size = end
        self._log, self._chain = first.record["log"], Chain(last.seq + 1, last.hash)
        return torn

    def _check_rotated(self) -> None:
        """Refuse older files that are none of ours: rotation would replace them."""
        for place in self._rotated():
            if _first_line(place) is None:
                raise AuditError(f"{place} is no older part of an audit log and would be replaced by one; move it away")

    def _rotated(self) -> Iterator[Path]:
        for number in range(1, self._keep + 1):
            place = rotated(self._path, number)
            if os.path.lexists(place):
                yield place

    def _find_earlier(self) -> None:
        """Go on where the newest of the older files ends, if there is one: a rotation was cut short."""
        place = rotated(self._path, 1)
        first = _first_line(place)
        if first is None:
            return
        with _reading(place) as file:
            _, last, _ = _ends(file, os.fstat(file).st_size)
        if last is not None:
            self._log, self._chain = first.record["log"], Chain(last.seq + 1, last.hash)

    def write(self, events: Sequence[Event]) -> None:
        """Write ``events``, one line each, and wait until they are on the disk; OSError if the system refuses."""
        for event in events:
            self.append(event)
        self.sync()

    def sync(self) -> None:
        """Wait until all is on the disk; OSError if the system refuses."""
        if self._file is not None:
            os.fdatasync(self._file)
            self.head = self._chain.head

    def append(self, event: Event) -> None:
        """Write a line for ``event``, which may be lost until `sync`; OSError if the system refuses."""
        if self._file is not None and (because := self._disturbance(self._file)):
            self._check_rotated()
            self.disturbed += 1
            self._leave()
            self._begin(event, because)
        elif self._file is None or self._size == 0:
            self._begin(event, "rotated" if self._chain.seq else "new")
        elif self._size > self._max_bytes:
            self._check_rotated()  # again: somebody may have put a file there since; lines are lost until it is gone
            self.seal(event)
            self.sync()
            self._leave()
            self._begin(event, "rotated")
        if self._unsaid:
            self._append(event._replace(name="lost", fields={"lines": self._unsaid, "why": self._why}))
            self._unsaid = 0
        self._append(event)

    def _disturbance(self, file: int) -> str:
        """Return what somebody did to the file, "" for nothing."""
        here = os.fstat(file)
        try:
            there = os.lstat(self._path)
        except FileNotFoundError:
            return "removed"
        if not os.path.samestat(here, there):
            return "replaced"
        return "" if here.st_size == self._size else "changed"

    def _leave(self) -> None:
        """Close the file; what lies under its name, if it is a log of ours, moves on and becomes an older one."""
        self.close()
        if _first_line(self._path) is None:  # removed, or somebody else's: a new file cannot be made in its place
            return
        for number in range(self._keep, 0, -1):
            place = self._path if number == 1 else rotated(self._path, number - 1)
            with contextlib.suppress(FileNotFoundError):
                place.rename(rotated(self._path, number))
        if not self._keep:
            self._path.unlink()

    def _begin(self, event: Event, because: str) -> None:
        """Begin a file, unless there is one: an empty one, which is locked by then."""
        if self._file is None:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
            try:
                self._lock(file)
            except BaseException:
                os.close(file)
                raise
            self._file, self._size = file, 0
        self._log = self._log or os.urandom(16).hex()
        firsts = [line.seq for place in self._rotated() if (line := _first_line(place)) is not None]
        begun = {
            "format": FORMAT,
            "log": self._log,
            "oldest": min(firsts, default=self._chain.seq),
            "because": because,
            "key": None if self._key is None else _fingerprint(self._key),
            "created_by": f"smart-edge {version()}",
        }
        self._append(event._replace(name=BEGIN, fields=begun))

    def seal(self, event: Event) -> None:
        """Sign the chain as it stands, if there is a key; ``event`` says when."""
        if self._key is not None and self._file is not None and self._size:
            data = sealed_bytes(self._log, self._chain.seq, self._chain.head)
            signed = {"signature": self._key.sign(data).hex(), "key": _fingerprint(self._key)}
            self._append(event._replace(name=SEAL, fields=signed))
            self.sync()

    def _append(self, event: Event) -> None:
        assert self._file is not None
        when = datetime.fromtimestamp(event.time_ns / 1e9, timezone.utc).isoformat(timespec="milliseconds")
        line, own = line_of(
            {
                "seq": self._chain.seq,
                "prev": self._chain.head,
                "event": event.name,
                "utc": when,
                "monotonic_s": round(event.monotonic_s, 6),
                **{name: plain(value) for name, value in event.fields.items()},
            }
        )
        rest, at = memoryview(line), self._size
        try:
            while rest:
                written = os.pwrite(self._file, rest, at)
                rest, at = rest[written:], at + written
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size, self._chain = at, Chain(self._chain.seq + 1, own)

    def lose(self, lines: int, why: str) -> None:
        """Own up to lines that could not be written, in the next one that can."""
        self._unsaid += lines
        self._why = why

    def close(self) -> None:
        """Close the file, which gives up its lock; may be called again."""
        file, self._file, self._size = self._file, None, 0
        if file is not None:
            os.close(file)

    def _refused(self, what: str) -> AuditError:
        return AuditError(f"the audit log {self._path} {what}; name another file")


def rotated(file: Path, number: int) -> Path:
    """Return where the older files of a log lie; 1 is the newest of them."""
    return file.with_name(f"{file.name}.{number}")


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDONLY | _FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _first_line(file: Path) -> Line | None:
    """Return the first line of a file of ours, None of anything else."""
    try:
        with _reading(file) as opened:
            data, end, _ = os.pread(opened, MAX_LINE, 0).partition(b"\n")
    except OSError:
        return None
    line = parse_line(data) if end else None
    return line if is_begin(line) else None


def _ends(file: int, size: int) -> tuple[Line | None, Line | None, int]:
    """Return the first line of an open file, its last whole line, and where that ends."""
    first, found, _ = os.pread(file, MAX_LINE, 0).partition(b"\n")
    start = max(0, size - 2 * MAX_LINE)
    tail = os.pread(file, size - start, start)
    whole = tail[: tail.rfind(b"\n") + 1]
    last = whole[:-1].rpartition(b"\n")[2]
    return (parse_line(first) if found else None), parse_line(last), start + len(whole)


def _fingerprint(key: Ed25519PrivateKey) -> str:
    from smart_runtime.bundle.signatures import public_half  # noqa: PLC0415  # only for who signs

    return public_half(key).fingerprint
