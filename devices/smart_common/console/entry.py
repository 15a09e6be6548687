"""Entry points of the commands whose packages need an extra: without it they say so in one sentence.

They live here because this package is always there: `pip install 'smart-edge[cpu]'` on a device puts smart-train on the
path too, and importing its package would end in a traceback for want of torch.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module


def _run(module: str, *, extra: str) -> None:
    try:
        import_module(module).main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("smart_"):
            raise  # a fault of ours, not something to install
        sys.exit(f"error: the Python module {error.name} is not installed; pip install 'smart-edge[{extra}]'")


smart_train = partial(_run, "smart_train.cli", extra="train")
smart_eval = partial(_run, "smart_eval.cli", extra="train")
smart_export = partial(_run, "smart_export.cli", extra="train,export,cpu")
