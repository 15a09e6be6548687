"""``smart-run selftest``: check this device, and a bundle on it; the answer is what to attach to an issue."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smart_common.console.cli import Command, json_option, print_json, print_wide, progress, say, say_error, table
from smart_common.outputs import check_outputs
from smart_devices.engine_rows import AUTO, engine_names

if TYPE_CHECKING:
    from smart_runtime.selfcheck.model_checks import Subject
    from smart_runtime.selfcheck.selftest import Outcome


@click.command(cls=Command, epilog="Example: smart-run selftest bundle/ --json > selftest.json")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    default=AUTO,
    metavar="NAME",
    help=f"One of {', '.join(engine_names())}.  [default: every one that runs on a GPU here]",
)
@click.option("--device", default=0, show_default=True, type=click.IntRange(min=0), help="The number of the GPU.")
@click.option("--trust", metavar="KEY.pub", type=click.Path(path_type=Path), help="Check only what it signed.")
@json_option
def selftest(*, bundle: Path | None, engine: str, device: int, trust: Path | None, as_json: bool) -> None:
    """Check that this device does what smart-edge relies on, and with BUNDLE that each path is right on it.

    The checks are those of the project's own tests. A check that fails is named, and the exit status is 1. Plans that
    the bundle does not have yet are built, which may take minutes.
    """
    from smart_common.version import version  # noqa: PLC0415  # `--help` does without
    from smart_runtime.bench.environment import read_environment  # noqa: PLC0415  # as above
    from smart_runtime.bundle.bundle import Bundle  # noqa: PLC0415  # as above
    from smart_runtime.bundle.signatures import public_key  # noqa: PLC0415  # as above
    from smart_runtime.engines.engine import EngineOptions  # noqa: PLC0415  # as above
    from smart_runtime.selfcheck import selftest as work  # noqa: PLC0415  # as above
    from smart_runtime.selfcheck.model_checks import Subject  # noqa: PLC0415  # as above

    check_outputs(inputs=[bundle, trust])
    engines = work.engines_to_check(engine)
    key = public_key(trust)
    opened = None if bundle is None else Bundle.open(bundle, trust=key)

    def subject(name: str) -> Subject:
        assert bundle is not None, "asked for with a bundle only"
        return Subject(bundle, name, EngineOptions(device=device), key)

    outcomes = []
    with progress("checking", total=1) as advance:
        for outcome in work.selftest(engines, subject=None if bundle is None else subject, device=device):
            outcomes.append(outcome)
            advance(f"{outcome.part}: {outcome.check}", count=0)
        advance()
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if as_json:
        print_json(
            {
                "smart_edge": version(),
                "environment": asdict(read_environment()),
                "bundle_digest": None if opened is None else opened.digest,
                "checks": [outcome.record for outcome in outcomes],
                "passed": not failed,
            }
        )
    else:
        print_wide(table("", ["part", "check", "passed", "seconds"], [_row(outcome) for outcome in outcomes]))
        if not engines:
            say("no engine runs on the GPU here: `smart-devices doctor` says what is missing")
    for outcome in failed:
        say_error(f"{outcome.part}, {outcome.check}: {outcome.error}")
    if failed:
        raise SystemExit(1)


def _row(outcome: Outcome) -> list[str]:
    skipped = outcome.figures is not None and "skipped" in outcome.figures
    passed = "skipped" if skipped else "yes" if outcome.passed else "no"
    return [outcome.part, outcome.check, passed, f"{outcome.seconds:.2f}"]
