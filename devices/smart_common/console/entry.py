"""Entry points of the commands, alone and under ``smart-edge``, each imported when it is called.

They live here because this package is always there: `pip install 'smart-edge[cpu]'` on a device puts smart-train on the
path too, and importing its package would end in a traceback for want of torch. Without the extra it says so in one
sentence.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import Any

import click

from smart_common.console.cli import INTERRUPTED, Group, version_option

_COMMANDS = {  # name under smart-edge: its module, the extra it needs, what it does
    "train": ("smart_train.cli", "train", "Train one network with a clean and a robust path."),
    "eval": ("smart_eval.cli", "train", "Measure the paths of checkpoints and bundles, clean and under attack."),
    "export": ("smart_export.cli", "train,export,cpu", "Fold a checkpoint into a bundle, check bundles, sign them."),
    "run": ("smart_runtime.cli", "cpu,image", "Classify pictures with a bundle."),
    "bench": ("smart_runtime.bench.cli", "cpu", "Compare the latency of paths and of dense networks."),
    "devices": ("smart_devices.cli", "cpu", "Say what devices can do, and what this one runs."),
}


def _command(name: str) -> click.Command:
    module, extra, _ = _COMMANDS[name]
    try:
        command: click.Command = import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("smart_"):
            raise  # a fault of ours, not something to install
        sys.exit(f"error: the Python module {error.name} is not installed; pip install 'smart-edge[{extra}]'")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    return command


def _run(name: str) -> None:
    _command(name).main()


smart_train, smart_eval, smart_export = partial(_run, "train"), partial(_run, "eval"), partial(_run, "export")


class _Umbrella(Group):
    """The commands of the table; a help page imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return _command(cmd_name) if cmd_name in _COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, _, what) in _COMMANDS.items()])


@click.group(cls=_Umbrella, epilog="Example: smart-edge train --data digits --eps 0.3 -o ckpt.pt")
@version_option("smart-edge")
def smart_edge(**_: Any) -> None:
    """Train, export and run networks with a clean and a robust path.

    Each command is also there by itself, as smart-train, smart-run and so on.
    """
