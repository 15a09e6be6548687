"""How a process of ours starts another one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# With -m and -c Python looks for modules in the current directory first, where a download may lie: a numpy.py in it
# would run. From Python 3.11 on there is -P; this says the same to every version, and gives the child our path.
_START = """\
import sys
sys.path[:] = {path!a}
import runpy
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return a command that runs ``module``, by its full name, as ``python -m`` does, but imports nothing from there.

    It finds modules where this process does; in the current directory only if PYTHONPATH names it.
    """
    return [sys.executable, "-c", _START.format(path=_path()), module, *arguments]


def _path() -> list[str]:
    path = [entry for entry in sys.path if isinstance(entry, str) and entry]
    here = Path.cwd()
    named = os.environ.get("PYTHONPATH")
    by_name = bool(named) and here in {Path(entry).absolute() for entry in str(named).split(os.pathsep)}
    # Further behind it stands because something is installed there.
    return path[1:] if path[:1] == [str(here)] and not by_name else path
