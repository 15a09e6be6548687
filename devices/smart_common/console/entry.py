"""Entry points of the commands, each imported when it is called.

They live here because this package is always there: `pip install 'smart-edge[cpu]'` on a device puts smart-train on the
path too, and importing its package would end in a traceback for want of torch. Without the extra it says so in one
sentence. And what Ctrl-C strikes while it is imported ends without a word: only `strikes`, which imports next to
nothing, comes before.
"""

from __future__ import annotations

import sys

from smart_common.console.strikes import Watching, raise_if_struck

TYPE_CHECKING = False  # as type checkers know it; `typing` takes longer than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

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
    from importlib import import_module  # noqa: PLC0415  # as above

    main = import_module(COMMANDS[name][0]).main
    raise_if_struck()  # an import may have swallowed it
    return main


class NamingTheExtra:
    """Ends the process with one sentence where the command ``name`` misses a library."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(error, ModuleNotFoundError) and error.name is not None and not error.name.startswith("smart_"):
            extra = COMMANDS[self._name][1]  # one of smart_ is a fault of ours, not something to install
            sys.exit(f"error: the Python module {error.name} is not installed; pip install 'smart-edge[{extra}]'")


def _entry(name: str) -> Callable[[], None]:
    def run() -> None:
        with Watching(), NamingTheExtra(name):
            command(name).main()

    return run


smart_train, smart_eval, smart_export = _entry("train"), _entry("eval"), _entry("export")
smart_run, smart_bench, smart_devices = _entry("run"), _entry("bench"), _entry("devices")


def smart_edge() -> None:
    """Run smart-edge, which has them all."""
    with Watching(), NamingTheExtra("devices"):  # whose libraries are those of the umbrella itself
        from importlib import import_module  # noqa: PLC0415  # as above

        import_module("smart_common.cli").main()
