"""What may go of a folder of plans, and how it goes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smart_common.files import locked, new_folder_beside
from smart_runtime.engines.plan_keys import Key, timing_name
from smart_runtime.engines.plan_meta import KERNELS, META, PLAN, Meta

NEW = "new"
"""What is written beside its place is called after this, and tidied up by whoever writes next."""

_BAD = re.compile(r"bad-[0-9a-f]{64}")
_TIMING = re.compile(r"timing-[0-9a-f]{16}\.cache")
_LOCK = re.compile(r"([0-9a-f]{64})\.lock")


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """An entry that was, or would be, removed: its name in the folder, its size, and why, in words.

    ``key`` is None where nobody can tell what it was, and for what is no plan.
    """

    name: str
    bytes: int
    why: str
    key: Key | None


def prune(
    place: Path,
    metas: Iterable[tuple[str, Meta | None]],
    *,
    usable: Callable[[Key], bool],
    keep_bytes: int | None,
    dry_run: bool,
) -> tuple[Pruned, ...]:
    """Remove what may go of the folder ``place``; arguments and result are those of `PlanCache.prune`.

    Args:
        place: The folder, checked.
        metas: The name of each plan's folder in it with what the plan says of itself, None where that is damaged.
        usable: As there.
        keep_bytes: As there.
        dry_run: As there.
    """
    going = list(_going(place, metas, usable=usable, keep_bytes=keep_bytes))
    if dry_run:
        return tuple(going)
    with new_folder_beside(place / NEW) as waste:
        gone = [pruned for pruned in going if _remove(place, pruned.name, waste)]
    _tidy_locks(place)
    return tuple(gone)


def _going(
    place: Path,
    metas: Iterable[tuple[str, Meta | None]],
    *,
    usable: Callable[[Key], bool],
    keep_bytes: int | None,
) -> Iterator[Pruned]:
    names = sorted(os.listdir(place))  # noqa: PTH208  # names alone
    for name in filter(_BAD.fullmatch, names):
        yield Pruned(name=name, bytes=_used(place / name)[1], why="set aside for a new one", key=None)
    kept = []
    for name, meta in metas:
        used, size = _used(place / name)
        if meta is None:
            yield Pruned(name=name, bytes=size, why="damaged, or not this user's alone", key=None)
        elif not usable(meta.key):
            yield Pruned(name=name, bytes=size, why="nothing here can use it", key=meta.key)
        else:
            kept.append((used, name, size, meta.key))
    kept.sort(key=lambda entry: entry[:2])
    left = sum(size for _, _, size, _ in kept)
    while kept and keep_bytes is not None and left > keep_bytes:
        _, name, size, key = kept.pop(0)
        left -= size
        yield Pruned(name=name, bytes=size, why="not used for the longest time", key=key)
    needed = {timing_name(key) for *_, key in kept}
    for name in filter(_TIMING.fullmatch, names):
        if name not in needed:
            yield Pruned(name=name, bytes=(place / name).lstat().st_size, why="no plan needs these timings", key=None)


def _used(entry: Path) -> tuple[int, int]:
    """Return when an entry was last used, in nanoseconds, and how many bytes its files have."""
    files = [(entry / name).lstat() for name in (PLAN, KERNELS, META) if os.path.lexists(entry / name)]
    return max((file.st_mtime_ns for file in files), default=0), sum(file.st_size for file in files)


def _remove(place: Path, name: str, waste: Path) -> bool:
    if _TIMING.fullmatch(name):  # a build that goes on writes it anew at its end
        (place / name).unlink(missing_ok=True)
        return True
    with locked(place / f"{name.removeprefix('bad-')}.lock") as mine:
        if not mine:
            return False
        try:
            (place / name).rename(waste / name)
        except FileNotFoundError:
            return False
        return True


def _tidy_locks(place: Path) -> None:
    for name in os.listdir(place):  # noqa: PTH208  # names alone
        match = _LOCK.fullmatch(name)
        if match and not (place / match[1]).exists():
            with locked(place / name) as mine:
                if mine:
                    (place / name).unlink(missing_ok=True)
