"""``smart-eval``: clean and robust accuracy of each path of checkpoints and bundles."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from smart_common.console import cli as house
from smart_common.outputs import Output, check_outputs
from smart_devices.engine_rows import REFERENCE_ENGINE
from smart_eval.attacks.table import ATTACKS, CLEAN
from smart_runtime.cli import engine_option, trust_option
from smart_train.architectures.cli import OwnNetwork, own_network_options
from smart_train.choices import DATA_SPECS
from smart_train.data.cli import DataPlaces, data_options, data_place
from smart_train.options import parse_fraction

if TYPE_CHECKING:
    from smart_eval.comparison import Comparison
    from smart_eval.report import Measured

SUSPECT = 3
"""The exit status after a whole result whose accuracies under attack may be too high."""


_GROUPS = {
    "Attacks and checks": (
        *("attack", "eps", "steps", "restarts", "step_size", "threats", "checks", "policy", "mix", "corruptions"),
        *("corruptions_from", "seed", "chunk"),
    ),
    "Models and data": (
        *("source", "trust", "engine", "model", "model_arg", "data", "data_dir", "cache_dir", "no_cache"),
        *("max_broken", "examples", "device"),
    ),
    "Output": ("output", "resume", "report", "include", "csv", "as_json"),
}


@click.command(
    cls=house.Command,
    context_settings={"show_default": True},
    option_groups=_GROUPS,
    epilog="""Example: smart-eval ckpt.pt --attack clean,pgd50x5,autoattack --examples 300

Another: smart-eval bundle/ --source ckpt.pt --attack pgd50x5

Does the pair notice attacks: smart-eval ckpt.pt --attack clean --policy tripwire --examples 200

Several in one table: smart-eval a.pt b.pt earlier.json --attack pgd,autoattack --report page.html --csv rows.csv""",
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
    "--mix",
    multiple=True,
    type=float,
    metavar="SHARE",
    help="Also measure the mix-50 of a checkpoint, for a share of 0.5 of its robust path, attacked as the mixture; may "
    "be repeated. The mixes of a bundle are measured without it.",
)
@click.option(
    "--corruptions",
    is_flag=True,
    help="Also measure on images with noise, blur, more brightness and JPEG's losses, at severities 1 to 5.",
)
@click.option(
    "--corruptions-from",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Also measure on the published CIFAR-10-C, CIFAR-100-C or ImageNet-C that lies there, as CIFAR-10-C/; the "
    "mean is over 15 kinds and 5 severities, as RobustBench counts it.",
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
    "--policy",
    type=house.Choice(["tripwire"]),
    help="Also measure what the tripwire, which watches whether the paths agree, notices of attackers: those who aim "
    "at a path, at both, and those who know it; frames to its alarm, what is lost before and after it, and what "
    "corruptions set off. Takes about 700 gradient steps on both paths for each image.",
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
@click.option(
    "--report",
    metavar="FILE.html",
    type=click.Path(path_type=Path),
    help="Write a page for people there: one file that needs nothing else.",
)
@click.option(
    "--include",
    metavar="FILE.json",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Show this saved result of smart-export --json or smart-bench --json on the page too, and latencies and bytes "
    "in the table of several models; may be repeated.",
)
@click.option(
    "--csv",
    metavar="FILE.csv",
    type=click.Path(path_type=Path),
    help="Write a line for each path there: parameters, MACs, accuracies with their intervals, latency where known.",
)
@click.option("--device", default="auto", type=house.Choice(["auto", "cpu", "cuda"]))
@house.json_option
@house.version_option("smart-eval")
def main(
    *,
    models: tuple[Path, ...],
    source: Path | None,
    trust: Path | None,
    engine: str | None,
    step_size: str | None,
    eps: str | None,
    data: str | None,
    places: DataPlaces,
    own: OwnNetwork,
    output: Path | None,
    resume: bool,
    report: Path | None,
    include: tuple[Path, ...],
    csv: Path | None,
    as_json: bool,
    **options: Any,  # the others are those of `EvalOptions`
) -> None:
    """Measure each path of every MODEL, a checkpoint or a bundle, on its test split, clean and under attacks.

    Several are compared in one table, for which they must share data and attacks. A MODEL may also be what smart-eval
    --json printed, FILE.json: its models join the table, and none that is there already is measured again.
    Accuracies have 95% intervals. An image counts under an attack if it is classified rightly before and after it.
    The graphs of a bundle run in their own precision, on the reference engine unless --engine names another one.
    The exit status is 3 if the result is whole but suspect, since a check failed, and 1 after an error.
    """
    from smart_eval.page.page import PageOutput  # noqa: PLC0415  # here and below: torch, which --help does not wait for

    files = [model for model in models if model.suffix == ".json" and not model.is_dir()]
    models = tuple(model for model in models if model not in files)
    several = bool(files) or len(models) > 1
    if not models:
        _refuse_to_measure(click.get_current_context())
    if report is None and csv is None and include and not several:
        raise click.UsageError("--include adds saved results to the page that --report writes: give it too.")
    page = PageOutput(report, include)
    if resume and output is None:
        raise click.UsageError("--resume goes on with the file that -o names: give it too.")
    if source is not None and not any(model.is_dir() for model in models):
        raise click.UsageError("--source is of bundles, and no MODEL is one.")
    if options["mix"] and any(model.is_dir() for model in models):
        raise click.UsageError("--mix is of checkpoints; a bundle has the mixes that smart-export --mix gave it.")
    if engine is not None and not any(model.is_dir() for model in models):
        raise click.UsageError("--engine is of bundles, and no MODEL is one.")
    from smart_eval.comparison import Comparison, is_csv, read_saved_results, write_csv  # noqa: PLC0415
    from smart_eval.evaluation import evaluate_all  # noqa: PLC0415
    from smart_eval.report import document  # noqa: PLC0415
    from smart_eval.subjects import EvalOptions  # noqa: PLC0415

    house.if_interrupted(
        lambda: (
            "nothing is kept; -o FILE keeps results as they come"
            if output is None
            else f"what was measured is kept in {output}; the same command with --resume goes on"
        )
    )
    saved = read_saved_results(files)
    results = [] if output is None else [Output("-o", output)]
    results += [] if csv is None else [Output("--csv", csv, is_csv)]
    corrupted = options["corruptions_from"]
    places_read = [*models, *files, source, trust, *include, corrupted, data_place(data), places.data_dir, own.file]
    check_outputs([*results, *page.outputs], inputs=places_read)
    with house.warnings_as_notes("smart_eval", "smart_train"):
        found = evaluate_all(
            models,
            data=data,
            options=EvalOptions(
                eps=None if eps is None else parse_fraction(eps),
                step_size=None if step_size is None else parse_fraction(step_size),
                **options,
            ),
            source=source,
            trust=trust,
            engine=engine or REFERENCE_ENGINE,
            output=output,
            resume=resume,
            read_checkpoint=own.load,
            read_data=places.load,
            progress=house.progress,
            after=partial(page.picture, seed=options["seed"]),
            saved=saved,
        )
    if found.shards.first:
        result = document(found.models)
        fresh, everything = result["models"], [*result["models"], *(one.document for one in saved)]
        comparison = Comparison.of(everything, included=page.included)
        if several:
            result = {"models": everything, "comparison": comparison.record()}
        if csv is not None:
            write_csv(comparison, csv)
        _say(found.models, comparison if several else None, result if as_json else None)
        command = shlex.join(["smart-eval", *house.typed()])
        written = page.write(
            fresh,
            comparison=comparison if several else None,
            command=command,
            device=found.device,
            processes=found.shards.world,
        )
        if written is not None:
            house.note(f"report: {written}")
        if any(row.suspect for row in comparison.rows):
            raise click.exceptions.Exit(SUSPECT)


def _refuse_to_measure(ctx: click.Context) -> None:
    """Raise UsageError if an option is typed that says how to measure, where every MODEL was measured before."""
    measuring = {*_GROUPS["Attacks and checks"], *_GROUPS["Models and data"], "output", "resume"}
    for option in ctx.command.params:
        if option.name in measuring and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} is of models to measure, and every MODEL is a saved result.")


def _say(measured: Sequence[Measured], comparison: Comparison | None, result: object) -> None:
    """Print ``result`` for machines, or tables where it is None; on standard error whether the figures are suspect."""
    from smart_eval.checks import summary  # noqa: PLC0415  # see above

    if result is None:
        _print_tables(measured, comparison)
    else:
        house.print_json(result)
    for one in measured:
        for sentence in (sentence for sentences in one.warnings.values() for sentence in sentences):
            house.note(f"{one.model}: warning: {sentence}")
        for line in summary(one.checks, model=str(one.model)):
            house.note(line)
    fresh = {one.digest for one in measured}
    for row in () if comparison is None else comparison.rows:
        if row.suspect and row.digest not in fresh:
            house.note(f"{row.subject}: SUSPECT, a check of the path {row.path!a} failed when it was measured")


def _print_tables(measured: Sequence[Measured], comparison: Comparison | None) -> None:
    """Print tables, and on standard error what they mean."""
    from smart_eval.calibrated import table as calibration_table  # noqa: PLC0415  # see above
    from smart_eval.comparison import table as comparison_table  # noqa: PLC0415  # see above
    from smart_eval.corruptions import table as corruptions_table  # noqa: PLC0415  # see above
    from smart_eval.report import replay_table, table  # noqa: PLC0415
    from smart_eval.threats import EXPLAINED  # noqa: PLC0415
    from smart_eval.threats import table as threats_table  # noqa: PLC0415

    several = len(measured) > 1
    if comparison is None:
        house.print_wide(house.table(*table(measured[0]), text_columns=1))
    else:
        house.print_wide(house.table(*comparison_table(comparison), text_columns=3))
    calibrated = [(str(one.model), one.calibration) for one in measured if one.calibration]
    if calibrated:
        house.print_wide(house.table(*calibration_table(calibrated), text_columns=1 + (len(calibrated) > 1)))
    if any(one.replay for one in measured):
        house.print_wide(house.table(*replay_table(measured), text_columns=2))
    corrupted = [(str(one.model), one.corruptions) for one in measured if one.corruptions is not None]
    if corrupted:
        house.print_wide(house.table(*corruptions_table(corrupted), text_columns=2 + several))
    for sentence in dict.fromkeys(one.threat_model for one in measured):
        house.note(sentence)
    threats = [(str(one.model), one.threats) for one in measured if one.threats is not None]
    if threats:
        house.print_wide(house.table(*threats_table(threats), text_columns=1 + (len(threats) > 1)))
        for sentence in EXPLAINED:
            house.note(sentence)
    watched = [(str(one.model), one.tripwire) for one in measured if one.tripwire is not None]
    if watched:
        from smart_eval.tripwire.detection import WHAT_IT_CANNOT, tables  # noqa: PLC0415  # see above

        house.print_wide(house.table(*tables(watched), text_columns=1 + (len(watched) > 1)))
        house.note(WHAT_IT_CANNOT)
        for model, found in watched:
            house.note(f"{model}: {found.sentence()}")
    for one in measured:
        for sentence in one.notes:
            house.note(f"{one.model}: {sentence}")


if __name__ == "__main__":
    main()
