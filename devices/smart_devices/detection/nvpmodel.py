"""Which power mode a Jetson is in, by name: the same number means different modes on different images."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from smart_devices.sysfs import Files

Run = Callable[[Sequence[str]], "str | None"]
"""Runs a command and returns what it printed, None when it cannot be run."""

_CONFIGURATION = "/etc/nvpmodel.conf"  # a link to the module's own
_STATUS = "/var/lib/nvpmodel/status"
# Errors for want of root may stand before it; an unset mode reads "NV Power Mode: NVPM - Type: WARN:".
_NAME = re.compile(r"^NV Power Mode(?:\[\d+\])?:[ \t]*(\w{1,64})[ \t]*\r?$", re.MULTILINE)
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d{1,6})\s+NAME=(\w{1,64})\s*>")
_LIVE = re.compile(r"\bpmode:(\d{1,6})\b")
_TIMEOUT_S = 10


@dataclass(frozen=True)
class LiveMode:
    """The power mode that a board is in.

    Attributes:
        name: Its name, as in ``MAXN_SUPER``.
        source: ``nvpmodel`` when the tool said so, ``files`` when its status file and its table of modes did.
    """

    name: str
    source: Literal["nvpmodel", "files"]


def run_command(command: Sequence[str]) -> str | None:
    """Run a command of this machine and return what it printed; None when it is not there or takes too long."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def run_nothing(command: Sequence[str]) -> None:  # takes what `run_command` takes
    """Run nothing: the commands of another machine cannot be run here."""


def live_mode(files: Files, run: Run) -> LiveMode | None:
    """Return the mode that the board is in, None when nothing says so; the table's default is only that of boot."""
    name = parse_query(run(("nvpmodel", "-q")) or "")
    if name is not None:
        return LiveMode(name=name, source="nvpmodel")
    number = parse_status(files.text(_STATUS) or "")
    name = None if number is None else parse_configuration(files.text(_CONFIGURATION) or "").get(number)
    return None if name is None else LiveMode(name=name, source="files")


def parse_query(text: str) -> str | None:
    """Return the name in what ``nvpmodel -q`` prints, None when it does not tell."""
    match = _NAME.search(text)
    return None if match is None else match[1]


def parse_configuration(text: str) -> dict[int, str]:
    """Return the names of the modes in ``nvpmodel.conf`` by number; numbers may have gaps."""
    return {int(number): name for number, name in _MODE.findall(text)}


def parse_status(text: str) -> int | None:
    """Return the number of the live mode in nvpmodel's status file: ``pmode:0002``, maybe with a fan mode after it."""
    match = _LIVE.search(text)
    return None if match is None else int(match[1])
