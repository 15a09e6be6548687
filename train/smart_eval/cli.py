"""``smart-eval``: clean and robust accuracy of each path of checkpoints and bundles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
import torch

from smart_common.console import cli as house
from smart_common.errors import shortened
from smart_common.files import digest_of_file
from smart_common.version import version
from smart_devices.engine_rows import REFERENCE_ENGINE
from smart_eval.bundles import Source, open_bundle
from smart_eval.checks import summary
from smart_eval.corruptions import check_corruptions
from smart_eval.corruptions import table as corruptions_table
from smart_eval.examination import MOST_IMAGES
from smart_eval.models import OpenCheckpoint, OpenModel
from smart_eval.page.cli import PageOptions, report_options
from smart_eval.records import Records
from smart_eval.report import Measured, document, replay_table, table
from smart_eval.run import Run, Subject, Wishes, made_with
from smart_eval.shards import join_shards
from smart_eval.threats import EXPLAINED, Threats
from smart_eval.threats import table as threats_table
from smart_runtime.cli import engine_option, trust_option
from smart_train.architectures.cli import OwnNetwork, own_network_options
from smart_train.chunks import CHUNK, MEMORY, MOST_IN_A_TENSOR
from smart_train.data.cli import DataPlaces, data_options
from smart_train.data.images import ImageSet
from smart_train.data.load import DATA_SPECS, NAMED
from smart_train.errors import ConfigError, DataError
from smart_train.options import parse_fraction

SUSPECT = 3
"""The exit status after a whole result whose accuracies under attack may be too high."""


@click.command(
    cls=house.Command,
    context_settings={"show_default": True},
    epilog="""Example: smart-eval ckpt.pt --attack clean,pgd50x5,autoattack --examples 300

Another: smart-eval bundle/ --source ckpt.pt --attack pgd50x5""",
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--attack",
    help="White-box, on each path itself: clean, pgd, pgd50x5 (50 steps, 5 restarts), autoattack, or one of its parts "
    "apgd-ce, apgd-t, fab-t, square; several with commas. On a bundle without --source only clean and square, which "
    "need no gradients.  [default: pgd; square for a bundle without --source]",
)
@click.option(
    "--source",
    metavar="CKPT",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
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
    f"most {MOST_IMAGES:,} images. If a check fails, the exit status is {SUSPECT} after the result. Takes somewhat "
    "longer than pgd50x5.",
)
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    help=f"Images that are attacked together.  [default: {CHUNK}, fewer where gradients would take more than "
    f"{MEMORY // 2**30} GiB, or on a CPU one tensor of them {MOST_IN_A_TENSOR // 2**20} MiB]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write results there as they come, a line of JSON for each chunk, for --resume.",
)
@click.option("--resume", is_flag=True, help="Go on with what -o has; results that do not belong to this run stay.")
@report_options
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@house.json_option
@click.version_option(version(), prog_name="smart-eval")
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
    page: PageOptions,
    device: str,
    as_json: bool,
) -> None:
    """Measure each path of every MODEL, a checkpoint or a bundle, on its test split, clean and under attacks.

    Accuracies have 95% intervals. An image counts under an attack if it is classified rightly before and after it.
    The graphs of a bundle run in their own precision, on the reference engine unless --engine names another one.
    The exit status is 3 if the result is whole but suspect, since a check failed, and 1 after an error.
    """
    if resume and output is None:
        raise click.UsageError("--resume goes on with the file that -o names: give it too.")
    chosen = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    if chosen == "cuda" and not torch.cuda.is_available():
        raise ConfigError("expected a CUDA device that torch can use, got none; use --device cpu")
    page.spare([*models, source, trust, output])
    if corruptions:
        check_corruptions()  # what is missing is missed now, not after an hour of attacks
    wishes = Wishes(
        attack=attack,
        eps=None if eps is None else parse_fraction(eps),
        steps=steps,
        restarts=restarts,
        step_size=None if step_size is None else parse_fraction(step_size),
        examples=examples,
        seed=seed,
        chunk=chunk,
        device=chosen,
        corruptions=corruptions,
        threats=threats,
        checks=checks,
    )
    if source is not None and not any(model.is_dir() for model in models):
        raise click.UsageError("--source is of bundles, and no MODEL is one.")
    if engine is not None and not any(model.is_dir() for model in models):
        raise click.UsageError("--engine is of bundles, and no MODEL is one.")
    origin = None if source is None else Source(own.load(source), digest_of_file(source))
    sets: dict[str, ImageSet] = {}
    subjects = []  # all are read before the first is attacked: what is wrong with the last shows at once
    measured = []
    with ExitStack() as opened:
        for file in models:
            model = _open(file, own=own, trust=trust, engine=engine, source=origin, until=opened)
            images = _images(model, file, data=data, places=places, sets=sets)
            subjects.append(wishes.subject(file, model, images))
        total = sum(subject.work for subject in subjects)
        shards = join_shards(chosen)
        place = shards.device or torch.device(chosen)
        records = opened.enter_context(Records(output, resume=resume, shards=shards))
        advance = opened.enter_context(house.progress("measuring", total=total))
        options = {"seed": seed, "device": place}
        running = Run(records, shards, options, made_with(place), lambda what, count: advance(what, count=count))
        for subject in subjects:
            subject.model.net.to(place)
            measured.append(running.measured(subject))
            if shards.first:
                page.picture(subject.model, subject.split, attacks=subject.attacks, seed=seed, device=place)
            subject.model.net.to("cpu")  # a GPU holds one at a time
    if shards.first:
        _say(measured, subjects, as_json=as_json)
        page.write(document(measured), device=place, processes=shards.world)  # after the figures: none is lost with it
        if any(one.suspect for one in measured):
            raise click.exceptions.Exit(SUSPECT)


def _open(
    file: Path,
    *,
    own: OwnNetwork,
    trust: Path | None,
    engine: str | None,
    source: Source | None,
    until: ExitStack,
) -> OpenModel:
    """Open a checkpoint, or a bundle until ``until`` ends."""
    if not file.is_dir():
        return OpenCheckpoint.of(own.load(file), digest=digest_of_file(file))
    threads = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    return until.enter_context(
        open_bundle(file, trust=trust, source=source, engine=engine or REFERENCE_ENGINE, threads=threads)
    )


def _images(
    model: OpenModel, file: Path, *, data: str | None, places: DataPlaces, sets: dict[str, ImageSet]
) -> ImageSet:
    """Return what to measure ``model`` on; ``sets`` keeps each set that was read.

    Raises:
        ConfigError: nobody says which data that is.
        DataError: it is of another form than the network.
    """
    record = model.training.get("data")
    record = record if isinstance(record, dict) else {}
    trained_on = shortened(str(record.get("kind", "other data")))  # of a bundle it may be anything
    if data is None and trained_on not in NAMED:
        raise ConfigError(f"expected --data for a network trained on {trained_on}, got none; give the same data again")
    name = data or trained_on
    if name not in sets:
        sets[name] = places.load(name)
    images = sets[name]
    if images.shape != model.input_shape or len(images.class_names) != len(model.class_names):
        raise DataError(
            f"expected images {model.input_shape} of {len(model.class_names)} classes as the network was "
            f"trained on, got {images.shape} of {len(images.class_names)}; give the data it was trained on"
        )
    if images.digest != record.get("digest"):
        house.note(
            f"warning: these are not the very images of the training of {file}: test images may have been trained on"
        )
    return images


def _say(measured: Sequence[Measured], subjects: Sequence[Subject], *, as_json: bool) -> None:
    """Print all for machines, or tables for people; on standard error whether the figures are suspect."""
    if as_json:
        house.print_json(document(measured))
    else:
        _print_tables(measured, subjects)
    for one in measured:
        for line in summary(one.checks, model=str(one.model)):
            house.note(line)


def _print_tables(measured: Sequence[Measured], subjects: Sequence[Subject]) -> None:
    """Print tables, and on standard error what they mean."""
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
    for subject in subjects:
        for sentence in subject.model.notes:
            house.note(f"{subject.file}: {sentence}")


def _print_threats(found: Sequence[tuple[str, Threats]]) -> None:
    if found:
        title, columns, rows = threats_table(found)
        house.print_wide(house.table(title, columns, rows, text_columns=1 + (len(found) > 1)))
        for sentence in EXPLAINED:
            house.note(sentence)


if __name__ == "__main__":
    main()
