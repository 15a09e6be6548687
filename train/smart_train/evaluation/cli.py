"""``smart-eval``: clean and robust accuracy of each path of checkpoints and bundles."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import numpy.typing as npt
import torch

from smart_devices.console import cli as house
from smart_devices.python_environment import version_of
from smart_devices.version import version
from smart_runtime.cli import trust_option
from smart_runtime.errors import shortened
from smart_train.architectures.cli import OwnNetwork, own_network_options
from smart_train.attacks import Attack
from smart_train.data.cli import DataPlaces, data_options
from smart_train.data.images import ImageSet, Split
from smart_train.data.load import DATA_SPECS, NAMED
from smart_train.errors import ConfigError, DataError
from smart_train.evaluation.accuracy import some_indices
from smart_train.evaluation.bundles import Source, as_listed, open_bundle
from smart_train.evaluation.checks import MOST_IMAGES, eps_curve, examine_network, judge, summary, work
from smart_train.evaluation.corruptions import STEPS, check_corruptions, measure_corruptions
from smart_train.evaluation.corruptions import table as corruptions_table
from smart_train.evaluation.measure import measure
from smart_train.evaluation.memory import CHUNK, MEMORY, enough_memory, usual_chunk
from smart_train.evaluation.models import OpenCheckpoint, OpenModel
from smart_train.evaluation.named import NamedAttack, parse_attacks
from smart_train.evaluation.page.cli import PageOptions, report_options
from smart_train.evaluation.records import Records
from smart_train.evaluation.report import Measured, document, replay_table, table
from smart_train.evaluation.shards import Shards, join_shards
from smart_train.evaluation.threats import EXPLAINED, Threats, measure_threats, sources, strongest_pgd
from smart_train.evaluation.threats import table as threats_table
from smart_train.files import digest_of_file
from smart_train.options import parse_fraction

SUSPECT = 3
"""The exit status after a whole result whose accuracies under attack may be too high."""

_T = TypeVar("_T")


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
    f"most {MOST_IMAGES:,} images. If a check fails, the exit status is {SUSPECT} after the result. Takes about as "
    "long as pgd50x5.",
)
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    help=f"Images that are attacked together.  [default: {CHUNK}, fewer where gradients would take more than "
    f"{MEMORY // 2**30} GiB]",
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
    The graphs of a bundle run in their own precision on the engine that this machine would deploy them with.
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
    wishes = _Wishes(
        attack=attack,
        eps=None if eps is None else parse_fraction(eps),
        steps=steps,
        restarts=restarts,
        step_size=None if step_size is None else parse_fraction(step_size),
        examples=examples,
        seed=seed,
        chunk=chunk,
        corruptions=corruptions,
        threats=threats,
        checks=checks,
    )
    if source is not None and not any(model.is_dir() for model in models):
        raise click.UsageError("--source is of bundles, and no MODEL is one.")
    origin = None if source is None else Source(own.load(source), digest_of_file(source))
    sets: dict[str, ImageSet] = {}
    subjects = []  # all are read before the first is attacked: what is wrong with the last shows at once
    measured = []
    with ExitStack() as opened:
        for file in models:
            model = _open(file, own=own, trust=trust, source=origin, until=opened)
            images = _images(model, file, data=data, places=places, sets=sets)
            subjects.append(wishes.subject(file, model, images))
        total = sum(subject.work for subject in subjects)
        shards = join_shards(chosen)
        place = shards.device or torch.device(chosen)
        records = opened.enter_context(Records(output, resume=resume, shards=shards))
        advance = opened.enter_context(house.progress("measuring", total=total))
        running = _Run(records, shards, advance, {"seed": seed, "device": place}, _made_with(place))
        for subject in subjects:
            subject.model.net.to(place)
            with enough_memory(subject.chunk):
                measured.append(running.checked(subject, running.attacked(subject)))
            if shards.first:
                page.picture(subject.model, subject.split, attacks=subject.attacks, seed=seed, device=place)
            subject.model.net.to("cpu")  # a GPU holds one at a time
    if shards.first:
        _say(measured, subjects, as_json=as_json)
        page.write(document(measured), device=place, processes=shards.world)  # after the figures: none is lost with it
        if any(one.suspect for one in measured):
            raise click.exceptions.Exit(SUSPECT)


@dataclass(frozen=True)
class _Subject:
    """One model with what it is measured by."""

    file: Path
    model: OpenModel
    images: ImageSet
    eps: float
    attacks: Sequence[NamedAttack]
    indices: npt.NDArray[np.int64] | None
    chunk: int
    threats: bool
    corrupted: bool
    checked: bool

    @property
    def split(self) -> Split:
        test = self.images.test
        return test if self.indices is None else Split(test.images[self.indices], test.labels[self.indices])

    @property
    def chosen(self) -> str | None:
        """A digest of which test images they are; None for all."""
        return None if self.indices is None else hashlib.blake2b(self.indices.tobytes(), digest_size=8).hexdigest()

    @property
    def work(self) -> int:
        """Images to classify or attack, over all paths."""
        paths, images = self.model.net.path_names, len(self.split)
        each = 1 + len(self.attacks) + STEPS * self.corrupted
        checks = len(paths) * work(images, eps=self.eps) if self.checked else 0
        return images * (len(paths) * each + len(sources(paths)) * self.threats) + checks


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """What the user wants measured of every model; None where a model's own value is to be taken."""

    attack: str | None
    eps: float | None
    steps: int
    restarts: int
    step_size: float | None
    examples: int | None
    seed: int
    chunk: int | None
    corruptions: bool
    threats: bool
    checks: bool

    def subject(self, file: Path, model: OpenModel, images: ImageSet) -> _Subject:
        """Return ``model`` with what it is to be measured by; raises ConfigError if that cannot be."""
        eps = model.eps if self.eps is None else self.eps
        Attack(eps=eps)  # checks the range, where there is no attack to check it too
        attacks = model.attacks(
            parse_attacks(
                model.usual_attack if self.attack is None else self.attack,
                eps=eps,
                steps=self.steps,
                restarts=self.restarts,
                step_size=self.step_size,
                classes=len(model.class_names),
            )
        )
        total, made_on = len(images.test), model.made_on
        return _Subject(
            file,
            model,
            images,
            eps,
            attacks,
            None if self.examples is None else some_indices(total, self.examples, seed=self.seed),
            self.chunk or usual_chunk([*made_on.values()], model.input_shape),
            threats=self.threats and bool(attacks) and len(made_on) > 1,
            corrupted=self.corruptions,
            checked=self.checks and bool(attacks) and model.kind == "checkpoint",
        )


@dataclass(frozen=True)
class _Run:
    """What all models are measured with."""

    records: Records
    shards: Shards
    advance: house.Advance
    options: Mapping[str, Any]
    made_with: Mapping[str, Any]

    def attacked(self, subject: _Subject) -> Measured:
        """Return what a model gets right, attacked and corrupted."""
        return self._shared(partial(self._attacked, subject))

    def checked(self, subject: _Subject, found: Measured) -> Measured:
        """Return ``found`` with what the checks say of it, where they are asked for."""
        if not subject.checked:
            return found
        examine = partial(examine_network, subject.model.net, subject.split, right=found.right, eps=subject.eps)
        examined = self._shared(partial(examine, attacks=subject.attacks, **self._common(subject)))
        checks = [check for path, each in examined.items() for check in judge(path, each)]
        return replace(found, checks=checks, eps_curve=eps_curve(examined))

    def _shared(self, compute: Callable[..., _T]) -> _T:
        result = compute(done=lambda path, name, count: self.advance(f"{path}, {name}", count=count))
        if self.shards.world > 1:
            self.records.unite()
            result = compute(done=lambda _, __, ___: None)  # put together of what all know
        return result

    def _common(self, subject: _Subject) -> dict[str, Any]:
        about = {**subject.model.about, "data": subject.images.digest, "chosen": subject.chosen, **self.made_with}
        return {**self.options, "chunk": subject.chunk, "records": self.records, "about": about}

    def _attacked(self, subject: _Subject, *, done: Callable[[str, str, int], None]) -> Measured:
        model, split, attacks = subject.model, subject.split, subject.attacks
        common = {**self._common(subject), "done": done}
        right = measure(model.net, split, attacks=attacks, **common)
        threats = None
        if subject.threats:
            paths = {name: model.net.path(name) for name in model.net.path_names}
            pgd = strongest_pgd(as_listed(attacks), eps=subject.eps)
            stand_ins = None if model.kind == "checkpoint" else model.made_on
            threats = measure_threats(paths, split, attack=pgd, right=right, made_on=stand_ins, **common)
        return Measured(
            model=subject.file,
            kind=model.kind,
            digest=model.digest,
            precision=model.precision,
            engine=model.engine,
            threat_model=model.threat_model,
            eps=subject.eps,
            attacks=attacks,
            right=right,
            labels=split.labels,
            class_names=model.class_names,
            seed=self.options["seed"],
            chunk=subject.chunk,
            indices=subject.indices,
            threats=threats,
            replay=model.replay,
            corruptions=measure_corruptions(model.net, split, **common) if subject.corrupted else None,
        )


def _made_with(device: torch.device) -> dict[str, Any]:
    """Return what else figures depend on to the bit."""
    libraries = ("torch", "pyautoattack", "pillow", "onnxruntime")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "smart-edge": version(),
        **{library: version_of(library) for library in libraries},
    }


def _open(file: Path, *, own: OwnNetwork, trust: Path | None, source: Source | None, until: ExitStack) -> OpenModel:
    """Open a checkpoint, or a bundle until ``until`` ends."""
    if not file.is_dir():
        return OpenCheckpoint.of(own.load(file), digest=digest_of_file(file))
    threads = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    return until.enter_context(open_bundle(file, trust=trust, source=source, threads=threads))


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


def _say(measured: Sequence[Measured], subjects: Sequence[_Subject], *, as_json: bool) -> None:
    """Print all for machines, or tables for people; on standard error whether the figures are suspect."""
    if as_json:
        house.print_json(document(measured))
    else:
        _print_tables(measured, subjects)
    for one in measured:
        for line in summary(one.checks, model=str(one.model)):
            house.note(line)


def _print_tables(measured: Sequence[Measured], subjects: Sequence[_Subject]) -> None:
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
