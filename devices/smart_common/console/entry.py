"""Entry points of the commands, each imported when it is called.

They live here because this package is always there: `pip install 'smart-edge[cpu]'` on a device puts smart-train on the
path too, and importing its package would end in a traceback for want of torch. Without the extra it says so in one
sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from smart_common.errors import INTERRUPTED

COMMANDS = {  # name under smart-edge: its module, the extra it needs, what it does
    "train": ("smart_train.cli", "train", "Train one network with a clean and a robust path."),
    "eval": ("smart_eval.cli", "train", "Measure the paths of checkpoints and bundles, clean and under attack."),
    "export": ("smart_export.cli", "train,export,cpu", "Fold a checkpoint into a bundle, check bundles, sign them."),
    "run": ("smart_runtime.cli", "cpu,image", "Classify pictures with a bundle."),
    "bench": ("smart_runtime.bench.cli", "cpu", "Compare the latency of paths and of dense networks."),
    "devices": ("smart_devices.cli", "cpu", "Say what devices can do, and what this one runs."),
}


def command(name: str) -> Any:
    """Return the click command ``name`` of the table; raises ModuleNotFoundError if what it needs is not installed."""
    return import_module(COMMANDS[name][0]).main


@contextmanager
def naming_the_extra(name: str) -> Iterator[None]:
    """End the process with one sentence where the command ``name`` misses a library, or Ctrl-C ends its imports."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("smart_"):
            raise  # a fault of ours, not something to install
        extra = COMMANDS[name][1]
        sys.exit(f"error: the Python module {error.name} is not installed; pip install 'smart-edge[{extra}]'")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _run(name: str) -> None:
    with naming_the_extra(name):
        command(name).main()


smart_train, smart_eval, smart_export = partial(_run, "train"), partial(_run, "eval"), partial(_run, "export")
