"""Results of an evaluation, kept as they come: one line of JSON for each chunk of images, path and attack.

Each line says all that its result depends on, so a run that goes on takes what is its own, whatever else is there.
Processes may share a run, ``torchrun --nproc-per-node 2 --no-python smart-eval ...``: each takes whole chunks, and all
append to one file, a line in one write each.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from smart_train.errors import ConfigError

_T = TypeVar("_T")

Right = npt.NDArray[np.bool_]

_RIGHT = "right"
_MARKS = "01"


@dataclass(frozen=True)
class Shards:
    """This process among those that share the work, each of which takes whole chunks.

    Attributes:
        rank: its number, from 0; the first one speaks.
        world: how many there are.
        device: where it computes, None for what the user chose.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def takes(self, chunk: int) -> bool:
        """Whether a chunk, by its number, is this process's."""
        return chunk % self.world == self.rank

    def wait(self) -> None:
        """Return when all have called it."""
        if self.world > 1:
            distributed.barrier()

    def united(self, own: Mapping[str, _T]) -> dict[str, _T]:
        """Return what all processes have, the same for each; called by all of them."""
        if self.world == 1:
            return dict(own)
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, dict(own))
        return {key: value for part in parts for key, value in part.items()}


ALONE = Shards()


def join_shards(accelerator: str) -> Shards:
    """Return this process's part in what torchrun has started, `ALONE` if it has not.

    Args:
        accelerator: ``cpu`` or ``cuda``, one GPU a process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or world == 1:
        return ALONE
    import lightning_fabric  # noqa: PLC0415  # takes a second, and few evaluations are shared

    local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = lightning_fabric.Fabric(
        accelerator=accelerator, devices=local, num_nodes=world // local, strategy="ddp", precision="32-true"
    )
    fabric.launch()
    return Shards(rank=fabric.global_rank, world=fabric.world_size, device=fabric.device)


class Records(AbstractContextManager["Records"]):
    """The results so far, by what they depend on; written to ``file`` line by line if there is one.

    Args:
        file: where to keep them; None keeps them in memory only.
        resume: take what ``file`` holds; else there must be no such file.
        shards: the processes that share the run; each opens its records at the same point of it.

    Raises:
        ConfigError: there is such a file without ``resume``, it holds something else, or another run writes it.
        OSError: the system cannot read or write it.
    """

    def __init__(
        self, file: str | os.PathLike[str] | None = None, *, resume: bool = False, shards: Shards = ALONE
    ) -> None:
        self._known: dict[str, Right] = {}
        self._output: BinaryIO | None = None
        self._shards = shards
        if file is None:
            return
        file = Path(file)
        if shards.first:
            self._output = _alone(file, new=not resume)
        shards.wait()
        try:
            self._read(file)
            self._output = self._output or file.open("ab", buffering=0)
        except BaseException:
            self.__exit__()
            raise
        shards.wait()  # so that nobody reads what another one has begun to write

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._output is not None:
            self._output.close()

    def of(self, key: Mapping[str, Any], *, count: int, judge: Callable[[], Right]) -> Right:
        """Return which images of a chunk were right, bool (count,): as it is known, or as ``judge`` finds it now.

        Of a chunk that another process takes, and that is not known, it returns that none is, and keeps nothing:
        after `unite` it is known.

        Args:
            key: what the result depends on, in values that JSON has; ``chunk`` is the chunk's number.
            count: of images.
            judge: returns the result.

        Raises:
            OSError: the system cannot write it.
        """
        text = json.dumps(key, sort_keys=True)
        found = self._known.get(text)
        if found is not None and len(found) == count:
            return found
        if not self._shards.takes(key["chunk"]):
            return np.zeros(count, dtype=np.bool_)
        right = judge()
        self._known[text] = right
        if self._output is not None:  # what is written survives if this process is killed
            marks = "".join(_MARKS[int(one)] for one in right)
            line = json.dumps({**key, _RIGHT: marks}).encode() + b"\n"
            written = self._output.write(line)
            if written != len(line):  # the next one would be glued to it; what is torn at the end is cut off
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._output.name)
        return right

    def unite(self) -> None:
        """Take in what the other processes know; each calls it at the same point of the run."""
        self._known = self._shards.united(self._known)

    def _read(self, file: Path) -> None:
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if content and not whole:  # the first line is either whole or nobody knows whose it is
            raise ConfigError(f"{file} holds no whole line of smart-eval's results; name another file")
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            found = _parsed(line)
            if found is None:
                raise ConfigError(f"line {number} of {file} is no result of smart-eval; name another file")
            self._known[found[0]] = found[1]
        if whole < len(content):  # a run that was killed as it wrote
            with file.open("r+b") as damaged:
                damaged.truncate(whole)


def _alone(file: Path, *, new: bool) -> BinaryIO:
    """Open ``file`` to append; raise ConfigError if another run has it open, or it is there and should be ``new``."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | (os.O_EXCL if new else 0), 0o666)  # nor is a link to nowhere followed

    try:
        output = open(file, "ab", buffering=0, opener=opener)  # noqa: SIM115  # the caller closes it
    except FileExistsError:
        raise ConfigError(f"{file} exists already; go on with it by --resume, or name another") from None
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed, also by a kill
    except BlockingIOError:
        output.close()
        raise ConfigError(f"another run is writing {file}; wait for it, or name another") from None
    return output


def _parsed(line: bytes) -> tuple[str, Right] | None:
    """Return what a line's result depends on, and the result; None if it holds something else."""
    try:
        record = json.loads(line)
        marks = record.pop(_RIGHT)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    if not isinstance(marks, str) or not marks or set(marks) - set(_MARKS):
        return None
    return json.dumps(record, sort_keys=True), np.array([mark == "1" for mark in marks])
