"""Run one function in a process of its own, with bounds on memory and time: for libraries that a file can lead astray.

What a C++ library makes of a stranger's file it decides itself: a graph of a kilobyte may ask for terabytes, for years,
or for a stack that no process has. In a child that is one sentence instead of the end of the caller.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

from smart_common.children import python_command
from smart_common.errors import SmartError, shortened
from smart_common.lazy import load

_WAITING = 4  # wall-clock seconds for each of processor time, on a busy machine
_BEGUN = b"\n"  # the first byte of an answer; JSON does not mind it


def run_limited(function: str, data: bytes, *, seconds: int, max_bytes: int) -> Any:
    """Return what ``function`` of ``data`` returns, None if the child ends without an answer: it took too much.

    Args:
        function: ``module:name``; it takes bytes and returns what JSON can hold, never None.
        data: what it is given.
        seconds: of processor time that it may take.
        max_bytes: of address space that it may take, libraries included.

    Raises:
        SmartError: The child cannot import the function, or what that needs.
    """
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # each would reserve memory
    try:
        done = subprocess.run(
            python_command("smart_common.limited", function, str(seconds), str(max_bytes)),
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WAITING * seconds,
            env=os.environ | one_thread,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    if not done.stdout.startswith(_BEGUN):
        raise SmartError("a child process cannot import smart-edge; install it, or name its folders in PYTHONPATH")
    if done.returncode != 0:
        return None
    answer = json.loads(done.stdout)
    if "missing" in answer:
        raise SmartError(f"{function} cannot be imported in a child process: {shortened(answer['missing'])}")
    return answer["result"]


def main() -> None:
    """Answer one request, in that child."""
    function, seconds, most = sys.argv[1], *map(int, sys.argv[2:])
    sys.stdout.buffer.write(_BEGUN)
    sys.stdout.buffer.flush()
    for kind, bound in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, most)):
        hard = resource.getrlimit(kind)[1]  # which may be the user's own
        bounded = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bounded, bounded))
    try:
        answer = {"result": load(function)(sys.stdin.buffer.read())}
    except (ImportError, SmartError) as error:
        answer = {"missing": str(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
