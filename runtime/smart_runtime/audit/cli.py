"""``smart-run audit``: check the audit log of a model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click

from smart_common.console.cli import Group, json_option, note, print_json, say, say_error
from smart_common.outputs import check_outputs

_HASH = re.compile(r"[0-9a-f]{64}")


@click.group(cls=Group, epilog="Example: smart-run audit verify switches.jsonl")
def audit() -> None:
    """Check the audit log that a model has kept of its switches."""


def _hash(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _HASH.fullmatch(value):
        raise click.BadParameter(f"expected 64 lower-case hex digits, got {value!a:.80}")
    return value


@audit.command(epilog="Example: smart-run audit verify switches.jsonl --trust device.pub")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trust", metavar="KEY.pub", type=click.Path(path_type=Path), help="Check the seals with this key.")
@click.option("--head", metavar="HASH", callback=_hash, help="A hash that an earlier check printed: it must be there.")
@json_option
def verify(*, file: Path, trust: Path | None, head: str | None, as_json: bool) -> None:
    """Find lines that were removed, changed, added or moved, in FILE and in the older files FILE.1, FILE.2 and so on.

    Lines that were cut off at the very end leave a whole log; only a seal (--trust) or an earlier head (--head) shows
    that. Status 1 if anything is wrong.
    """
    from smart_runtime.audit.verification import older_files, verify_audit  # noqa: PLC0415  # `--help` does without
    from smart_runtime.bundle.signatures import public_key  # noqa: PLC0415  # as above

    check_outputs(inputs=[file, *older_files(file), trust])
    found = verify_audit(file, trust=public_key(trust), head=head)
    if as_json:
        print_json({"file": str(file), "whole": not found.problems, **dataclasses.asdict(found)})
    else:
        dropped = f"; {found.first} earlier ones were dropped with old files" if found.first else ""
        files = "1 file" if len(found.files) == 1 else f"{len(found.files)} files"
        say(f"{found.lines} lines in {files}, {found.events.get('switch', 0)} switches{dropped}")
        say(f"head {found.head}")
        if not found.seals:
            say("no seals: keep the head elsewhere, for nothing else shows that lines were cut off at the end")
        else:
            checked = "checked" if found.checked else "not checked: --trust KEY.pub checks them"
            say(f"{found.seals} seals, {checked}; {found.unsealed} lines come after the last one")
        if not found.ended:
            note("it does not end with a close: its model is running, was killed, or the end was cut off")
    if found.problems:
        for problem in found.problems[1:]:
            note(problem)
        say_error(f"{file} was changed or damaged: {found.problems[0]}")
        raise SystemExit(1)
