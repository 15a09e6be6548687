"""``smart-edge``: every command under one name."""

from __future__ import annotations

from typing import Any

import click

from smart_common.console.cli import Group, version_option
from smart_common.console.entry import COMMANDS, NamingTheExtra, command


class _Umbrella(Group):
    """The commands of the table; a help page imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        with NamingTheExtra(cmd_name):
            found: click.Command = command(cmd_name)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; some of its libraries are imported only then."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError:
            with NamingTheExtra(str(ctx.invoked_subcommand)):
                raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, _, what) in COMMANDS.items()])


@click.group(cls=_Umbrella, epilog="Example: smart-edge train --data digits --eps 0.3 -o ckpt.pt")
@version_option("smart-edge")
def main(**_: Any) -> None:
    """Train, export and run networks with a clean and a robust path.

    Each command is also there by itself, as smart-train, smart-run and so on.
    """


if __name__ == "__main__":
    main()
