"""Evaluation of checkpoints and bundles: what is wanted of each, and how it is measured, by one process or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch

from smart_common.version import version
from smart_devices.python_environment import version_of
from smart_eval.calibrated import measure_calibration
from smart_eval.checks import judge
from smart_eval.comparison import Saved, to_measure
from smart_eval.corruptions import measure_corruptions
from smart_eval.examination import eps_curve, examine_network
from smart_eval.measure import Run, measure
from smart_eval.models import open_bundle, open_checkpoint, read_source
from smart_eval.records import Records, Shards, join_shards
from smart_eval.report import Measured
from smart_eval.subjects import EvalOptions, Subject, images_of
from smart_eval.threats import measure_threats, strongest_pgd
from smart_eval.tripwire.detection import TripwireFound
from smart_eval.tripwire.of_models import tripwire_of
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.signatures import PublicKey, public_key
from smart_runtime.engines import REFERENCE_ENGINE
from smart_train.checkpoint.format import Checkpoint, load_checkpoint
from smart_train.chunks import enough_memory
from smart_train.data.images import ImageSet
from smart_train.data.load import load_data
from smart_train.data.source import Advance, Progress, no_progress
from smart_train.errors import ConfigError

_T = TypeVar("_T")

ModelLike: TypeAlias = str | os.PathLike[str] | Checkpoint | Bundle
"""A checkpoint or a bundle, or where it is."""


@dataclass(frozen=True)
class _Evaluator:
    """What all models are measured with; ``made_with`` is from `_made_with`."""

    records: Records
    shards: Shards
    seed: int
    device: torch.device
    made_with: Mapping[str, Any]
    advance: Advance

    def measured(self, subject: Subject) -> Measured:
        """Return all that is wanted of a model, which is on the device; raises ConfigError if memory is short."""
        with enough_memory(subject.chunk):
            found = self._shared(subject, partial(_attacked, subject))
            if subject.policy is not None:
                found = replace(found, tripwire=self._tripwire(subject))
            if not subject.checked:
                return found
            net, attacks = subject.model.net, subject.attacks
            examine = partial(examine_network, net, subject.split, right=found.right, attacks=attacks, eps=subject.eps)
            examined = self._shared(subject, lambda run: examine(run=run))
        checks = [check for path, each in examined.items() for check in judge(path, each)]
        return replace(found, checks=checks, eps_curve=eps_curve(examined))

    def _tripwire(self, subject: Subject) -> TripwireFound:
        return tripwire_of(
            subject.model,
            subject.split,
            eps=subject.eps,
            seed=self.seed,
            chunk=subject.chunk,
            device=self.device,
            done=lambda kind, count: self.advance(f"tripwire, {kind}", count),
        )

    def _shared(self, subject: Subject, compute: Callable[[Run], _T]) -> _T:
        run = Run(
            seed=self.seed,
            records=self.records,
            about={**subject.model.about, "data": subject.images.digest, "chosen": subject.chosen, **self.made_with},
            chunk=subject.chunk,
            device=self.device,
        )
        result = compute(replace(run, done=lambda path, name, count: self.advance(f"{path}, {name}", count)))
        if self.shards.world > 1:
            self.records.unite()
            result = compute(run)  # put together of what all know
        return result


def _attacked(subject: Subject, run: Run) -> Measured:
    model, split, attacks = subject.model, subject.split, subject.attacks
    right = measure(model.net, split, attacks=attacks, run=run)
    threats = None
    if subject.threats:
        paths = {name: model.net.path(name) for name in model.net.path_names}
        pgd = strongest_pgd(attacks, eps=subject.eps)
        stand_ins = None if model.kind == "checkpoint" else model.made_on
        threats = measure_threats(paths, split, attack=pgd, right=right, made_on=stand_ins, run=run)
    calibration = None
    if not model.randomised:
        calibration = measure_calibration(
            model.net, split, temperatures=model.temperatures, chunk=subject.chunk, device=run.device
        )
    return Measured(
        **model.facts,
        eps=subject.eps,
        attacks=attacks,
        right=right,
        labels=split.labels,
        data={"kind": subject.images.kind, "digest": subject.images.digest},
        seed=run.seed,
        chunk=subject.chunk,
        indices=subject.indices,
        threats=threats,
        calibration=calibration,
        corruptions=None if subject.corrupted is None else measure_corruptions(model.net, subject.corrupted, run=run),
    )


def _made_with(device: torch.device) -> dict[str, Any]:
    """Return what figures computed on ``device`` depend on to the bit, beside model, images and options."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "smart-edge": version(),
        **{library: version_of(library) for library in ("torch", "pyautoattack", "pillow", "onnxruntime")},
    }


@dataclass(frozen=True)
class Evaluation:
    """What was found of all models.

    Attributes:
        models: in the order in which they were given.
        device: where they were measured.
        shards: the processes that shared the work, this one among them.
    """

    models: Sequence[Measured]
    device: torch.device
    shards: Shards


def evaluate(
    model: ModelLike,
    *,
    data: str | os.PathLike[str] | ImageSet | None = None,
    options: EvalOptions = EvalOptions(),  # noqa: B008  # it is frozen
    source: str | os.PathLike[str] | Checkpoint | None = None,
    engine: str = REFERENCE_ENGINE,
) -> Measured:
    """Measure each path of a checkpoint or a bundle, clean and under attacks.

    Args:
        model: a checkpoint or a bundle, or where it is.
        data: images, or a name as `load_data` takes it; by default what it was trained on, where its name says all.
        options: what is wanted.
        source: the checkpoint that a bundle was exported from.
        engine: what runs the graphs of a bundle.

    Returns:
        ``accuracy(path, attack)`` and ``worst(path)``, each with its interval, and ``document()`` as plain values, one
        of ``models`` in ``smart-eval --json``.

    Raises:
        ConfigError, DataError, CheckpointError, BundleError, EngineError, MissingExtraError, OSError: as
            `evaluate_all` raises them.

    Example:
        ``evaluate("ckpt.pt", options=EvalOptions(attack="pgd50x5", examples=300)).worst("robust").value``
    """
    return evaluate_all([model], data=data, options=options, source=source, engine=engine).models[0]


def evaluate_all(
    models: Sequence[ModelLike],
    *,
    data: str | os.PathLike[str] | ImageSet | None = None,
    options: EvalOptions,
    source: str | os.PathLike[str] | Checkpoint | None = None,
    trust: str | os.PathLike[str] | PublicKey | None = None,
    engine: str = REFERENCE_ENGINE,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    read_checkpoint: Callable[[Path], Checkpoint] = load_checkpoint,
    read_data: Callable[..., ImageSet] = load_data,
    progress: Progress = no_progress,
    after: Callable[[Subject, torch.device], None] = lambda _, __: None,
    saved: Sequence[Saved] = (),
) -> Evaluation:
    """Measure models one after the other; all are opened and checked before the first is attacked.

    Several must share data and attacks.

    Args:
        models: checkpoints and bundles, or where they are.
        data: see `evaluate`.
        options: what is wanted of each.
        source: see `evaluate`.
        trust: a public key, or its file, which is read once; only bundles signed by it are opened.
        engine: what runs the graphs of bundles.
        output: a file that gets each result as it comes; None keeps nothing.
        resume: take what ``output`` holds.
        read_checkpoint: reads a checkpoint's file.
        read_data: reads a data set by its name, and a folder's pictures at an ``image_size`` of (height, width).
        progress: a context for a bar of ``total`` images, which gives what moves it on.
        after: called with each model when it is measured and still on the device, by the first process only.
        saved: results that the models are compared with; a model that is among them is not measured again.

    Raises:
        ConfigError: the options do not fit a model or this machine, nobody says which data, models differ in data or
            attacks, or memory is short.
        DataError: the data is damaged, missing or of another form than the network.
        CheckpointError: a file is no checkpoint.
        BundleError, SignatureError, EngineError: a bundle cannot be opened or run.
        MissingExtraError: a library is not installed.
        OSError: the system cannot read or write a file.
    """
    accelerator = options.accelerator
    key = public_key(trust)
    origin = None if source is None else read_source(source, load=read_checkpoint)
    read = cache(read_data)
    measured: list[Measured] = []
    with ExitStack() as stack:
        subjects = []
        for one in models:
            if isinstance(one, Bundle) or (not isinstance(one, Checkpoint) and Path(one).is_dir()):
                if options.mix:
                    raise ConfigError("mix is of checkpoints; a bundle has the mixes that it was exported with")
                model = stack.enter_context(open_bundle(one, trust=key, source=origin, engine=engine))
            else:
                file = Path("checkpoint" if isinstance(one, Checkpoint) else one)
                model = open_checkpoint(read_source(one, load=read_checkpoint), file=file, mix=options.mix)
            subjects.append(options.subject(model, images_of(model, data, read=read)))
        subjects = to_measure(subjects, saved)
        shards = join_shards(accelerator)
        device = shards.device or torch.device(accelerator)
        records = stack.enter_context(Records(output, resume=resume, shards=shards))
        advance = stack.enter_context(progress("measuring", total=sum(subject.work for subject in subjects)))
        evaluator = _Evaluator(records, shards, options.seed, device, _made_with(device), advance)
        for subject in subjects:
            subject.model.net.to(device)
            measured.append(evaluator.measured(subject))
            if shards.first:
                after(subject, device)
            subject.model.net.to("cpu")  # a GPU holds one at a time
    return Evaluation(measured, device, shards)
