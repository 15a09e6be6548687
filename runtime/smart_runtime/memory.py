"""What a model's paths cost in memory, and how many of them may be loaded at once."""

from __future__ import annotations

import ctypes
import mmap
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, Protocol, TypeAlias, TypeVar, get_args

from smart_runtime.engines.engine import Engine
from smart_runtime.errors import EngineError, OutOfMemoryError

Mode: TypeAlias = Literal["resident", "on-demand"]

RESIDENT: Mode = "resident"
"""All paths are loaded: a switch is an assignment."""

ON_DEMAND: Mode = "on-demand"
"""One path is loaded, and those that a scope of `SmartModel.using` asks for: a switch loads the other one."""

LOAD_PEAK = 3
"""Loading a path takes, for a moment, up to this many times the size of its files (ONNX Runtime, measured: 2 to 3)."""

_STATM = Path("/proc/self/statm")

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class PathMemory:
    """What one path costs.

    ``file_bytes`` is the size of its graph and weights, which an engine needs at least; ``resident_bytes`` is by how
    much the process grew while its engine was made and first run (other threads' work included), None while it is not
    loaded or where the system does not say. ``device_bytes`` is the same for a GPU's memory, other
    programs' doing included; None on a CPU, while it is not loaded, or where the engine does not say.
    """

    loaded: bool
    file_bytes: int
    resident_bytes: int | None
    device_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """What a model costs: ``mode`` as it came out, the ``budget_bytes`` it was chosen by if any, and each path's cost.

    ``process_bytes`` is the resident memory of the whole process, None where the system does not say, and
    ``shared_device_bytes`` what all paths of all models in it share on the GPU, for running; None on a CPU.
    """

    mode: Mode
    budget_bytes: int | None
    paths: Mapping[str, PathMemory]
    process_bytes: int | None
    shared_device_bytes: int | None = None


class _Loaded(Protocol):
    """A path that is loaded."""

    engine: Engine
    resident_bytes: int | None


def memory_report(
    mode: Mode, memory: Mode | int, *, sizes: Mapping[str, int], loaded: Mapping[str, _Loaded]
) -> MemoryReport:
    """Return what a model costs: bytes of files by path, and of those that are loaded what they took."""
    paths = {}
    for name, size in sizes.items():
        one = loaded.get(name)
        paths[name] = PathMemory(
            loaded=one is not None,
            file_bytes=size,
            resident_bytes=None if one is None else one.resident_bytes,
            device_bytes=None if one is None else one.engine.device_bytes,
        )
    return MemoryReport(
        mode=mode,
        budget_bytes=memory if isinstance(memory, int) else None,
        paths=MappingProxyType(paths),
        process_bytes=resident_bytes(),
        shared_device_bytes=next((one.engine.shared_device_bytes for one in loaded.values()), None),
    )


def choose_mode(memory: Mode | int, *, costs: Mapping[str, int]) -> Mode:
    """Return the mode that ``memory`` asks for: itself, or for a budget in bytes the fastest one that fits.

    Args:
        memory: ``resident``, ``on-demand`` or a budget.
        costs: Bytes by path.

    Raises:
        EngineError: No mode and no budget, or one that not even the largest path alone fits into.
    """
    if isinstance(memory, str) and memory in get_args(Mode):
        return memory
    if not isinstance(memory, int) or isinstance(memory, bool) or memory < 1:
        raise EngineError(
            f"expected 'resident', 'on-demand' or a budget in bytes for the memory, got {memory!r}; "
            "'resident' keeps every path loaded"
        )
    if sum(costs.values()) <= memory:
        return RESIDENT
    largest = max(costs, key=lambda name: costs[name])
    if costs[largest] > memory:
        raise EngineError(
            f"expected a budget of at least {costs[largest]} bytes, which the path {largest!r} needs, got {memory}; "
            "allow more, or export with a lower density"
        )
    return ON_DEMAND


def refuse_on_demand(what: str) -> NoReturn:
    """Raise EngineError, since ``what`` cannot be done where paths are loaded on demand."""
    raise EngineError(f"{what} needs every path loaded, and on demand one is; load the bundle with memory='resident'")


def resident_bytes() -> int | None:
    """Return the resident memory of this process, None where the system does not say (proc(5), statm)."""
    try:
        return int(_STATM.read_bytes().split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return None


def has_room(size_bytes: int) -> bool:
    """Say whether the system lets this process have ``size_bytes`` more; where it overcommits, it may regret that."""
    try:
        mmap.mmap(-1, max(1, size_bytes)).close()
    except (OSError, ValueError, OverflowError, MemoryError):
        return False
    return True


def check_room(costs: Mapping[str, int], *, new: str, old: str) -> None:
    """Refuse to drop the path ``old`` for the path ``new`` where not even that makes room; ``costs`` are bytes by path.

    Raises:
        OutOfMemoryError: There is none.
    """
    if not has_room(LOAD_PEAK * max(costs[new], costs[old]) - costs[old]):
        raise OutOfMemoryError(
            f"too little memory to load the path {new!r} in the place of {old!r}: loading takes more for a moment; "
            "free some, or export with a lower density"
        )


def release_frames(error: BaseException, *, outside: BaseException | None) -> None:
    """Let go of what the functions that ``error`` came through still hold: a graph's bytes, for one.

    Not of ``outside``, which its caller was handling when all this began.
    """
    following: BaseException | None = error
    while following is not None and following is not outside:
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__


def releasing(work: Callable[[], _T]) -> _T:
    """Return ``work()``; what that raises keeps no engine, file or bytes alive, however long it is kept itself.

    An interrupt may strike where an engine is in the hands of one function only, and an exception holds the locals of
    all that it came through.
    """
    outside = sys.exc_info()[1]
    try:
        return work()
    except BaseException as error:
        release_frames(error, outside=outside)
        raise


def give_back_freed() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc's malloc_trim(3)).

    An engine is made from copies that are freed again, and malloc keeps their room: two paths of ResNet-34 take 171 MiB
    without this and 99 with it. It takes a few milliseconds.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
