"""Check an audit log: whether a line was removed, changed, added or moved, in its older files too.

What the chain cannot show is that lines are missing at its very end: the log as it stood earlier is whole, too. A seal,
which only the key can make, and a hash that was kept elsewhere show it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smart_runtime.audit.chain import CLOSE, MAX_LINE, NOTHING, SEAL, Line, is_begin, parse_line, sealed_bytes
from smart_runtime.audit.writer import rotated
from smart_runtime.bundle.signatures import PublicKey
from smart_runtime.errors import AuditError

MOST_PROBLEMS = 20
_MOST_FILES = 1000
_MOST_EVENTS, _OTHERS = 100, "others"  # names, which a forger chooses
_HEX = re.compile(r"[0-9a-f]{2,}")


@dataclass(frozen=True, kw_only=True)
class AuditCheck:
    """What was found in a log.

    Attributes:
        files: those that were read, oldest first.
        lines: how many lines they have.
        first: the number of the first line; those before it were dropped with the oldest files.
        head: the hash of the last line, which is 64 zeros in an empty log.
        events: how many lines of each kind there are.
        ended: whether the last thing in it is that its model was closed.
        seals: how many seals there are.
        unsealed: how many lines come after the last seal.
        checked: whether the seals were checked, with a key.
        problems: a sentence each, at most 20; none where nothing is wrong.
    """

    files: tuple[str, ...]
    lines: int
    first: int
    head: str
    events: Mapping[str, int]
    ended: bool
    seals: int
    unsealed: int
    checked: bool
    problems: tuple[str, ...]


def verify_audit(file: Path, *, trust: PublicKey | None = None, head: str | None = None) -> AuditCheck:
    """Check the log in ``file`` and the older files beside it, of whatever size.

    Args:
        file: The newest file.
        trust: The key whose seals are to be there.
        head: A hash that an earlier check gave, which must be in the log still.

    Raises:
        AuditError: There is no such file.
        MissingExtraError: cryptography is not installed, which ``trust`` needs.
        OSError: The system cannot read a file.
    """
    if not file.is_file():
        raise AuditError(f"no audit log at {file}; check the path")
    walk = _Walk(trust=trust, wanted=head)
    for place in reversed(older_files(file)):
        if stat.S_ISREG(place.lstat().st_mode):  # a device or a pipe would be read for ever
            walk.read(place)
        else:
            walk.wrong(f"{place} is no plain file")
    walk.read(file)
    return walk.outcome()


def older_files(file: Path) -> list[Path]:
    """Return the older files of the log in ``file`` that lie beside it, the newest first."""
    older: list[Path] = []
    while file.name and len(older) < _MOST_FILES and os.path.lexists(place := rotated(file, len(older) + 1)):
        older.append(place)
    return older


@dataclass(kw_only=True)
class _Walk:
    """The chain as far as it was read."""

    trust: PublicKey | None
    wanted: str | None
    files: list[str] = field(default_factory=list)
    lines: int = 0
    first: int | None = None
    last: Line | None = None
    log: str = ""
    oldest: int = 0  # the first line that should be there, as the newest file says
    keyed: bool = False  # whether the file that is read says that it is sealed
    events: dict[str, int] = field(default_factory=dict)
    unsealed: int = 0
    found: bool = False
    problems: list[str] = field(default_factory=list)
    more: int = 0

    def read(self, place: Path) -> None:
        """Check one file; what comes after a wrong line is compared with that line."""
        self.files.append(str(place))
        number = 0
        for number, (data, whole) in enumerate(_lines(place), start=1):  # used after the loop
            where = f"line {number} of {place}"
            line = parse_line(data)
            if not whole:
                self.wrong(f"{where} is cut off, as by a crash; the model says so in the log when it goes on with it")
            elif line is None:
                self.wrong(f"{where} was changed, or is none of an audit log")
                self.last = None
            else:
                self.take(line, where, first=number == 1)
            self.lines += 1
        if number == 0:
            self.wrong(f"{place} is empty")

    def take(self, line: Line, where: str, *, first: bool) -> None:
        """Compare a line that is whole in itself with what comes before it."""
        if first != is_begin(line):
            self.wrong(f"{where} " + ("does not begin a file" if first else "begins a file, in the middle of another"))
        if self.first is None:
            self.first = line.seq
            if (line.seq == 0) != (line.prev == NOTHING):
                self.wrong(f"{where} has a number that does not fit its place in the chain")
        elif self.last is not None and (line.seq, line.prev) != (self.last.seq + 1, self.last.hash):
            self.wrong(f"{where} has the number {line.seq} and does not follow on number {self.last.seq} before it")
        if self.last is not None and self.last.event == CLOSE and self.keyed and line.event != SEAL:
            self.wrong(f"{where} comes after a close that was not sealed")
        if is_begin(line):
            if self.log and line.record["log"] != self.log:
                self.wrong(f"{where} begins another log")
            self.log, self.oldest = line.record["log"], line.record["oldest"]
            self.keyed = line.record.get("key") is not None
        event = line.event if line.event in self.events or len(self.events) < _MOST_EVENTS else _OTHERS
        self.events[event] = self.events.get(event, 0) + 1
        self.unsealed += 1
        if line.event == SEAL:
            self.check_seal(line, where)
            self.unsealed = 0
        self.found = self.found or line.hash == self.wanted
        self.last = line

    def check_seal(self, line: Line, where: str) -> None:
        """Check the signature of a seal, if there is a key to check it with."""
        if self.trust is None:
            return
        signature: Any = line.record.get("signature")
        signed = isinstance(signature, str) and _HEX.fullmatch(signature) and len(signature) % 2 == 0
        data = sealed_bytes(self.log, line.seq, line.prev)
        if not signed or not self.trust.has_signed(bytes.fromhex(signature), data):
            self.wrong(f"{where} is no seal of the trusted key")

    def wrong(self, sentence: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(sentence)
        else:
            self.more += 1

    def outcome(self) -> AuditCheck:
        """Return what was found, with what only the end shows."""
        first = self.first or 0
        if self.log and first > self.oldest:
            self.wrong(f"the lines from number {self.oldest} to {first - 1} are missing: an older file was removed")
        if self.last is not None and self.last.event == CLOSE and self.keyed:
            self.wrong(f"{self.files[-1]} ends with a close that was not sealed")
        if self.trust is not None and not self.events.get(SEAL):
            self.wrong("there is no seal of the trusted key")
        if self.wanted is not None and not self.found:
            self.wrong("the hash that was to be there is not: lines were cut off at the end, or it was of another log")
        if self.more:
            self.problems.append(f"and {self.more} more")
        return AuditCheck(
            files=tuple(self.files),
            lines=self.lines,
            first=first,
            head=NOTHING if self.last is None else self.last.hash,
            events=self.events,
            ended=self.last is not None and self.last.event in {CLOSE, SEAL} and CLOSE in self.events,
            seals=self.events.get(SEAL, 0),
            unsealed=self.unsealed,
            checked=self.trust is not None,
            problems=tuple(self.problems),
        )


def _lines(place: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines of a file without their ends, and whether each has one; longer ones than ours in pieces."""
    with place.open("rb") as file:
        while data := file.readline(MAX_LINE):
            yield data.removesuffix(b"\n"), data.endswith(b"\n") or len(data) == MAX_LINE
