"""Build a plan in a child process, which can be killed at any moment and leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from io import FileIO
from itertools import chain, repeat
from typing import Any

from smart_common.children import python_command
from smart_common.errors import MissingExtraError, shortened
from smart_runtime.engines.trt.int8 import check_quantisation
from smart_runtime.engines.trt.plan_worker import plan_in_process
from smart_runtime.engines.trt.recipe import BuildRecipe, BuildRefusedError, BuiltPlan
from smart_runtime.errors import ClosedError, DeviceLostError, DeviceTakenError, EngineError, OutOfMemoryError

__all__ = ["BuildRecipe", "BuildRefusedError", "BuiltPlan", "build_plan", "plan_in_process"]

STARTING = "starting"

_WORKER = "smart_runtime.engines.trt.plan_worker"
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_CLOEXEC = os.O_CLOEXEC
_TICK_SECONDS = 1.0
_RAISED: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        BuildRefusedError,
        ClosedError,
        DeviceLostError,
        DeviceTakenError,
        EngineError,
        MissingExtraError,
        OutOfMemoryError,
    )
}

_log = logging.getLogger(__name__)


def build_plan(
    model: bytes,
    recipe: BuildRecipe,
    *,
    timeout_s: float | None = None,
    on_phase: Callable[[str, float], None] | None = None,
) -> BuiltPlan:
    """Build a plan in a child process; it ends with this call, however that ends, and with this process.

    Args:
        model: An ONNX file with its weights inside, see `smart_runtime.engines.onnx_inline`.
        recipe: How.
        timeout_s: What it may take, waiting included; None for as long as it takes.
        on_phase: Called with what happens now and the seconds since the beginning; at each change, and each second.
            Libraries say too little for a percentage. What it raises ends the build.

    Raises:
        EngineError: The library refuses the graph (`BuildRefusedError`), or the child was killed, crashed or took too
            long; OutOfMemoryError, the memory does not suffice.
        MissingExtraError: The library is not installed, or there is no driver for a plan for this device.
    """
    check_quantisation(model)
    started = time.monotonic()
    with ExitStack() as undo:
        try:
            graph, plan, output = map(undo.enter_context, _memory_files("graph", "plan", "output"))
            _write_sealed(graph, model)
            child = undo.enter_context(_Child(recipe, graph=graph, plan=plan, output=output))
        except OSError as error:
            kind = OutOfMemoryError if error.errno in {errno.ENOMEM, errno.ENOSPC} else EngineError
            raise kind(f"the system refuses to start a build: {error}; close other programs and try again") from error
        phase = STARTING
        if on_phase is not None:
            on_phase(phase, time.monotonic() - started)
        for told in child.told(None if timeout_s is None else started + timeout_s):
            if "done" in told:
                child.end()
                return _plan_of(told, plan)
            if "error" in told:
                raise _RAISED.get(told["error"], EngineError)(*told["arguments"])
            if "log" in told:
                _log.info("%s", told["log"])
            phase = told.get("phase", phase)
            if on_phase is not None:
                on_phase(phase, time.monotonic() - started)
        if child.timed_out:
            raise EngineError(
                f"the build was ended after {timeout_s:g} seconds, in the phase {phase!r}; "
                "give it more with --timeout, or try less hard with --level 2"
            )
        raise _death(child.wait(), phase=phase, output=output)


class _Child:
    """The process that builds; in a ``with`` block, at whose end it is dead."""

    def __init__(self, recipe: BuildRecipe, *, graph: FileIO, plan: FileIO, output: FileIO) -> None:
        self.timed_out = False
        with ExitStack() as undo:
            reading, writing = map(undo.enter_context, _owned(chain.from_iterable(map(os.pipe2, [_CLOEXEC])), "r", "w"))
            passed = {"graph": graph, "plan": plan, "report": writing}
            numbers = {name: file.fileno() for name, file in passed.items()}
            request = {**numbers, "recipe": recipe.document, "parent": os.getpid()}
            self._process = subprocess.Popen(
                python_command(_WORKER, json.dumps(request)),
                stdin=subprocess.PIPE,  # never written to: the child ends when it is closed, and so when it is lost
                stdout=output,
                stderr=output,
                pass_fds=tuple(numbers.values()),
            )
            self._reading = reading
            undo.pop_all()
            writing.close()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill the child if it is alive, and wait until it is gone."""
        try:
            self._process.kill()
            self._process.wait()
        finally:
            assert self._process.stdin is not None, "it is a pipe"
            self._process.stdin.close()
            self._reading.close()

    def wait(self) -> int:
        """Return how a child that has nothing more to say ended; negative, the number of a signal."""
        return self._process.wait()

    def told(self, deadline: float | None) -> Iterator[dict[str, Any]]:
        """Yield what the child tells, nothing ({}) about each second; until it ends, or until the deadline."""
        poll, rest = select.poll(), b""
        poll.register(self._reading, select.POLLIN)
        while True:
            left = _TICK_SECONDS if deadline is None else min(_TICK_SECONDS, deadline - time.monotonic())
            if left <= 0:
                self.timed_out = True
                return
            if not poll.poll(left * 1000):
                yield {}
                continue
            piece = os.read(self._reading.fileno(), 2**16)
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            yield from map(json.loads, lines)


def _memory_files(*names: str) -> list[FileIO]:
    """Return files that are in memory only and have no path, so that nobody else can open them."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    numbers = map(os.memfd_create, (f"smart-edge-{name}" for name in names), repeat(flags))
    return _owned(numbers, *repeat("r+", len(names)))


def _owned(numbers: Iterator[int], *modes: str) -> list[FileIO]:
    """Return a file, which closes itself, for each descriptor that ``numbers`` makes when it is asked.

    Ctrl-C comes between two steps of Python's: with ``numbers`` in C too, there is none from a descriptor to its owner.
    """
    return list(map(FileIO, numbers, modes))


def _write_sealed(file: FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)


def _plan_of(told: Mapping[str, Any], file: FileIO) -> BuiltPlan:
    """Return what a child that is dead by now has left, if it is whole."""
    file.seek(0)
    plan = file.read()
    if len(plan) != told["bytes"] or hashlib.sha256(plan).hexdigest() != told["sha256"]:
        raise EngineError("the plan was damaged on its way from the build; build it again")
    return BuiltPlan(plan=plan, **told["done"])


def _death(code: int, *, phase: str, output: FileIO) -> EngineError:
    """Return the error for a child that ended without an answer."""
    if code == -9:
        return EngineError(
            f"the build was killed in the phase {phase!r}, most likely by the system for want of memory; close other "
            "programs, build with less --workspace or with --level 2, or add swap"
        )
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - 2**14))
    lines = output.read().decode("utf-8", "replace").strip().splitlines()
    how = f"crashed with signal {-code}" if code < 0 else f"ended with status {code}"
    said = f": {shortened(lines[-1])}" if lines else ""
    return EngineError(f"the build {how} in the phase {phase!r}{said}; try --level 2, or report this")
