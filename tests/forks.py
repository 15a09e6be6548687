"""Processes that need no start: one that has imported what takes seconds forks a child at each order.

Importing torch takes two seconds and a first conversion to ONNX two more. A forked child has both for nothing, and all
else that makes a process: arguments, environment, standard streams and an exit code of its own. Only its start and the
interpreter's end are left out; tests of those start a process from nothing.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 300


class Forker:
    """A process that runs ``python -m MODULE ARGUMENTS``, which serves; the first order starts it, our end ends it."""

    def __init__(self, module: str, *arguments: str | Path) -> None:
        self._command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, **order: object) -> int:
        """Have a child do ``order`` and return its exit code, negative if a signal ended it."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            atexit.register(self.close)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process, which waits for orders."""
        if self._process is not None:
            with self._process:  # it closes the pipes and waits
                self._process = None


def serve(work: Callable[..., object]) -> None:
    """Read orders from standard input, a JSON object a line, and answer each with the exit code of the child doing it.

    ``work`` gets the order as keyword arguments.
    """
    gc.collect()
    gc.freeze()  # or the first collection in each child copies every page
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm(TIMEOUT_S)  # a hang must end
            code = _exit_code(partial(work, **json.loads(line)))
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # to take hundreds of modules down would cost a second
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _exit_code(work: Callable[[], object]) -> int:
    """Do ``work`` and return what Python would exit with."""
    try:
        work()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


class Command:
    """A command as a user runs it, but for its start: in a child of ``module``, which serves ``run_command``."""

    def __init__(self, module: str, *, name: str) -> None:
        self._fork = Forker(module)
        self._name = name

    def __call__(self, *arguments: str | Path, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
        """Run the command here and now: in this folder, with this environment."""
        argv = [self._name, *map(str, arguments)]
        with tempfile.TemporaryDirectory(prefix="smart-edge-streams-") as folder:
            streams = [Path(folder, name) for name in ("stdout", "stderr")]
            code = self._fork(
                argv=argv,
                folder=str(Path.cwd()),
                environment=dict(os.environ),
                umask=umask,
                streams=list(map(str, streams)),
            )
            return subprocess.CompletedProcess(argv, code, *(stream.read_text("utf-8") for stream in streams))


def run_command(
    main: Callable[[], object],
    *,
    argv: list[str],
    folder: str,
    environment: dict[str, str],
    umask: int,
    streams: list[str],
) -> None:
    """Make this child the process of a command, and run it."""
    for number, place in enumerate([os.devnull, *streams]):
        file = os.open(place, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.umask(umask)
    sys.argv[:] = argv
    main()
