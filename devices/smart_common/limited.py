"""Run one function in a process of its own, with bounds on memory and time: for libraries that a file can lead astray.

What a C++ library makes of a stranger's file it decides itself: a graph of a kilobyte may ask for terabytes, for years,
or for a stack that no process has. In a child that is one sentence instead of the end of the caller.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

# Its modules are found where the parent's are found, and not in the folder that it is started in (see `children`).
_CHILD = """
import json, resource, sys
path, function, seconds, most = json.loads(sys.argv[1])
for kind, bound in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, most)):
    hard = resource.getrlimit(kind)[1]  # which may be the user's own
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(kind, (bound, bound))
sys.path[:] = path
from smart_common.lazy import load
answer = json.dumps(load(function)(sys.stdin.buffer.read()))
sys.stdout.write(answer)
sys.stdout.flush()
"""
_WAITING = 4  # wall-clock seconds for each of processor time, on a busy machine


def run_limited(function: str, data: bytes, *, seconds: int, max_bytes: int) -> Any:
    """Return what ``function`` of ``data`` returns, None if the child ends without an answer.

    Args:
        function: ``module:name``; it takes bytes and returns what JSON can hold, never None.
        data: what it is given.
        seconds: of processor time that it may take.
        max_bytes: of address space that it may take, libraries included.
    """
    path = list(filter(None, sys.path))  # "" stands for the current directory
    arguments = json.dumps([path, function, seconds, max_bytes])
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # each would reserve memory
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, arguments],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WAITING * seconds,
            env=os.environ | one_thread,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout) if done.returncode == 0 else None
