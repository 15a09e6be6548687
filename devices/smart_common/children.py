"""How a process of ours starts another one."""

from __future__ import annotations

import sys

# With -m and -c Python looks for modules in the current directory first, where a download may lie: a numpy.py in it
# would run. From Python 3.11 on there is -P; this says the same to every version.
_START = """\
import sys
sys.path[:] = filter(None, sys.path)
import runpy
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return a command that runs ``module``, by its full name, as ``python -m`` does, but imports nothing from there.

    Paths in PYTHONPATH hold, as they do for this process.
    """
    return [sys.executable, "-c", _START, module, *arguments]
