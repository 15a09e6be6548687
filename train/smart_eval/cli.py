"""``smart-eval``: clean and robust accuracy of each path of checkpoints and bundles."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from smart_common.console import cli as house
from smart_devices.engine_rows import REFERENCE_ENGINE
from smart_eval.attacks.table import ATTACKS, CLEAN
from smart_eval.page.cli import report_options
from smart_runtime.cli import engine_option, trust_option
from smart_train.architectures.cli import OwnNetwork, own_network_options
from smart_train.choices import DATA_SPECS
from smart_train.data.cli import DataPlaces, data_options
from smart_train.options import parse_fraction

if TYPE_CHECKING:
    from smart_eval.page.output import PageOutput
    from smart_eval.report import Measured
    from smart_eval.threats import Threats

SUSPECT = 3
"""The exit status after a whole result whose accuracies under attack may be too high."""


@click.command(
    cls=house.Command,
    context_settings={"show_default": True},
    epilog="""Example: smart-eval ckpt.pt --attack clean,pgd50x5,autoattack --examples 300

Another: smart-eval bundle/ --source ckpt.pt --attack pgd50x5""",
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--attack",
    help=f"White-box, on each path itself: {', '.join((CLEAN, *ATTACKS))}; several with commas. pgd50x5 is PGD with 50 "
    "steps and 5 restarts; those after autoattack are its parts. On a bundle without --source only clean and square, "
    "which need no gradients.  [default: pgd; square for a bundle without --source]",
)
@click.option(
    "--source",
    metavar="CKPT",
    type=click.Path(path_type=Path),
    help="The checkpoint that the bundles were exported from: replay its samples, and attacks made on its paths.",
)
@trust_option
@engine_option(REFERENCE_ENGINE)
@click.option("--steps", default=20, help="Of --attack pgd.")
@click.option("--restarts", default=1, help="Of --attack pgd.")
@click.option("--step-size", help="Of PGD, in pixel units.  [default: 2.5 eps / steps]")
@click.option("--eps", help="Radius in pixel units: 0.3, 8/255.  [default: that of the training]")
@click.option("--examples", type=int, help="Measure on this many test images, chosen by the seed.  [default: all]")
@click.option("--data", help=f"{DATA_SPECS}.  [default: what it was trained on, where its name says all]")
@data_options
@own_network_options
@click.option(
    "--corruptions",
    is_flag=True,
    help="Also measure on images with noise, blur, more brightness and JPEG's losses, at severities 1 to 5.",
)
@click.option("--seed", default=0, type=click.IntRange(0, 2**32 - 1))
@click.option(
    "--threats/--no-threats",
    default=True,
    help="With attacks and two or more paths: images made on one path tried on the others, an attacker who does not "
    "know the path, and the worst of all; of bundles with --source only. On unless told, since figures of each path "
    "alone say nothing of an attacker who uses them together. Takes PGD (the strongest of --attack, else pgd20x1) up "
    "to twice on each path, also on what is broken: about four times as long as the same PGD alone, little beside "
    "AutoAttack.",
)
@click.option(
    "--checks/--no-checks",
    default=True,
    help="With attacks on checkpoints: look for hidden gradients, which make an accuracy under attack too high, on at "
    f"most 1,000 images. If a check fails, the exit status is {SUSPECT} after the result. Takes somewhat "
    "longer than pgd50x5.",
)
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    help="Images that are attacked together.  [default: 512, fewer where gradients would take more than 4 GiB, or on a "
    "CPU one tensor of them 32 MiB]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write results there as they come, a line of JSON for each chunk, for --resume.",
)
@click.option("--resume", is_flag=True, help="Go on with what -o has; results that do not belong to this run stay.")
@report_options
@click.option("--device", default="auto", type=house.Choice(["auto", "cpu", "cuda"]))
@house.json_option
@house.version_option("smart-eval")
def main(
    *,
    models: tuple[Path, ...],
    attack: str | None,
    source: Path | None,
    trust: Path | None,
    engine: str | None,
    steps: int,
    restarts: int,
    step_size: str | None,
    eps: str | None,
    examples: int | None,
    data: str | None,
    places: DataPlaces,
    own: OwnNetwork,
    corruptions: bool,
    seed: int,
    threats: bool,
    checks: bool,
    chunk: int | None,
    output: Path | None,
    resume: bool,
    page: PageOutput,
    device: Literal["auto", "cpu", "cuda"],
    as_json: bool,
) -> None:
    """Measure each path of every MODEL, a checkpoint or a bundle, on its test split, clean and under attacks.

    Accuracies have 95% intervals. An image counts under an attack if it is classified rightly before and after it.
    The graphs of a bundle run in their own precision, on the reference engine unless --engine names another one.
    The exit status is 3 if the result is whole but suspect, since a check failed, and 1 after an error.
    """
    if resume and output is None:
        raise click.UsageError("--resume goes on with the file that -o names: give it too.")
    if source is not None and not any(model.is_dir() for model in models):
        raise click.UsageError("--source is of bundles, and no MODEL is one.")
    if engine is not None and not any(model.is_dir() for model in models):
        raise click.UsageError("--engine is of bundles, and no MODEL is one.")
    from smart_eval.evaluation import EvalOptions, evaluate_all  # noqa: PLC0415  # torch, which --help does not wait for
    from smart_eval.report import document  # noqa: PLC0415  # likewise

    page.spare([*models, source, trust, output])
    with house.warnings_as_notes("smart_eval"):
        found = evaluate_all(
            models,
            data=data,
            options=EvalOptions(
                attack=attack,
                eps=None if eps is None else parse_fraction(eps),
                steps=steps,
                restarts=restarts,
                step_size=None if step_size is None else parse_fraction(step_size),
                examples=examples,
                seed=seed,
                chunk=chunk,
                device=device,
                corruptions=corruptions,
                threats=threats,
                checks=checks,
            ),
            source=source,
            trust=trust,
            engine=engine or REFERENCE_ENGINE,
            output=output,
            resume=resume,
            read_checkpoint=own.load,
            read_data=places.load,
            progress=house.progress,
            after=lambda subject, device: page.picture(
                subject.model, subject.split, attacks=subject.attacks, seed=seed, device=device
            ),
        )
    if found.shards.first:
        result = document(found.models)
        _say(found.models, result if as_json else None)
        command = shlex.join(["smart-eval", *house.typed()])
        written = page.write(result, command=command, device=found.device, processes=found.shards.world)
        if written is not None:
            house.note(f"report: {written}")
        if any(one.suspect for one in found.models):
            raise click.exceptions.Exit(SUSPECT)


def _say(measured: Sequence[Measured], result: object) -> None:
    """Print ``result`` for machines, or tables where it is None; on standard error whether the figures are suspect."""
    from smart_eval.checks import summary  # noqa: PLC0415  # see above

    if result is None:
        _print_tables(measured)
    else:
        house.print_json(result)
    for one in measured:
        for line in summary(one.checks, model=str(one.model)):
            house.note(line)


def _print_tables(measured: Sequence[Measured]) -> None:
    """Print tables, and on standard error what they mean."""
    from smart_eval.corruptions import table as corruptions_table  # noqa: PLC0415  # see above
    from smart_eval.report import replay_table, table  # noqa: PLC0415

    title, columns, rows = table(measured)
    several = int(len(measured) > 1)
    house.print_wide(house.table(title, columns, rows, text_columns=1 + several))
    if any(one.replay for one in measured):
        title, columns, rows = replay_table(measured)
        house.print_wide(house.table(title, columns, rows, text_columns=2))
    corrupted = [(str(one.model), one.corruptions) for one in measured if one.corruptions is not None]
    if corrupted:
        title, columns, rows = corruptions_table(corrupted)
        house.print_wide(house.table(title, columns, rows, text_columns=2 + several))
    for sentence in dict.fromkeys(one.threat_model for one in measured):
        house.note(sentence)
    _print_threats([(str(one.model), one.threats) for one in measured if one.threats is not None])
    for one in measured:
        for sentence in one.notes:
            house.note(f"{one.model}: {sentence}")


def _print_threats(found: Sequence[tuple[str, Threats]]) -> None:
    from smart_eval.threats import EXPLAINED, table  # noqa: PLC0415  # see above

    if found:
        title, columns, rows = table(found)
        house.print_wide(house.table(title, columns, rows, text_columns=1 + (len(found) > 1)))
        for sentence in EXPLAINED:
            house.note(sentence)


if __name__ == "__main__":
    main()
