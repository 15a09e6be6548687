"""Evaluation of checkpoints and bundles: what is wanted of each, and how it is measured, by one process or several."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from smart_common.errors import alternatives, shortened
from smart_common.names import printable
from smart_common.version import version
from smart_devices.python_environment import version_of
from smart_eval.attacks.base import NamedAttack
from smart_eval.attacks.table import parse_attacks
from smart_eval.checks import judge
from smart_eval.corruptions import JPEG, STEPS, measure_corruptions
from smart_eval.examination import eps_curve, examine_network, work
from smart_eval.measure import Run, measure
from smart_eval.models import OpenModel, open_bundle, open_checkpoint, read_source
from smart_eval.records import Records, Shards, join_shards
from smart_eval.report import Measured
from smart_eval.threats import measure_threats, sources, strongest_pgd
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.signatures import PublicKey, public_key
from smart_runtime.engines import REFERENCE_ENGINE
from smart_runtime.pictures import check_pillow
from smart_train.accuracy import some_indices
from smart_train.attacks import Attack
from smart_train.checkpoint.format import Checkpoint, load_checkpoint
from smart_train.chunks import enough_memory, usual_chunk
from smart_train.data.images import ImageSet, Split
from smart_train.data.load import NAMED, data_spec, load_data, wanted_size
from smart_train.data.source import Advance, Progress, no_progress
from smart_train.errors import ConfigError, DataError
from smart_train.training.config import DEVICES

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

ModelLike: TypeAlias = str | os.PathLike[str] | Checkpoint | Bundle
"""A checkpoint or a bundle, or where it is."""


@dataclass(frozen=True)
class Subject:
    """One model with what it is measured by.

    Attributes:
        model: opened.
        images: its test split is measured on.
        eps: radius of all attacks, in pixel units.
        attacks: as they are made on it.
        indices: of the test images, int64 (N,); None for all.
        chunk: images that are attacked together.
        threats: whether images made on one path are tried on the others.
        corrupted: whether it is measured on corrupted images too.
        checked: whether hidden gradients are looked for.
    """

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
        """The test images to measure on."""
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
class EvalOptions:
    """What is wanted of every model.

    Attributes:
        attack: names with commas as ``--attack`` takes them: ``clean,pgd50x5,autoattack``; by default PGD, and Square
            on a bundle whose source is not given.
        eps: radius in pixel units, in [0, 1]; by default what the model was trained for.
        steps: of the attack ``pgd``.
        restarts: likewise.
        step_size: of PGD, in pixel units; by default 2.5 eps / steps.
        examples: that many test images, chosen by the seed; by default all.
        seed: of attacks and of the choice of images.
        chunk: images that are attacked together; by default what fits a fixed memory.
        device: ``auto``, ``cpu`` or ``cuda``.
        corruptions: measure on noisy, blurred, brighter and compressed images too.
        threats: try images made on one path on the others.
        checks: look for hidden gradients.

    Raises:
        ConfigError: a value is out of range.
    """

    attack: str | None = None
    eps: float | None = None
    steps: int = 20
    restarts: int = 1
    step_size: float | None = None
    examples: int | None = None
    seed: int = 0
    chunk: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    corruptions: bool = False
    threats: bool = True
    checks: bool = True

    def __post_init__(self) -> None:
        if self.attack is not None and not isinstance(self.attack, str):
            raise ConfigError(
                f"expected attacks in one text with commas, as in 'clean,pgd50x5', got {self.attack!r:.60}"
            )
        if self.device not in DEVICES:
            raise ConfigError(f"unknown device {alternatives(str(self.device), DEVICES)}")
        for name, least in (("chunk", 1), ("seed", 0)):  # the others are checked where they meet images and attacks
            value = getattr(self, name)
            if value is not None and not least <= value < 2**32:
                raise ConfigError(f"expected {name} of {least} or more, below 2**32, got {value}")

    @property
    def accelerator(self) -> str:
        """``cpu`` or ``cuda``; raises ConfigError if a GPU is asked for and there is none."""
        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise ConfigError("torch cannot use a CUDA device here; use --device cpu")
        return "cuda" if available and self.device != "cpu" else "cpu"

    def subject(self, model: OpenModel, images: ImageSet) -> Subject:
        """Return ``model`` with what it is to be measured by.

        Raises:
            ConfigError: an attack cannot be made on it, or there are too few images.
            MissingExtraError: an attack needs pyautoattack, which is not installed.
        """
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
        return Subject(
            model,
            images,
            eps,
            attacks,
            None if self.examples is None else some_indices(total, self.examples, seed=self.seed),
            self.chunk or usual_chunk([*made_on.values()], model.input_shape, device=self.accelerator),
            threats=self.threats and bool(attacks) and len(made_on) > 1,
            corrupted=self.corruptions,
            checked=self.checks and bool(attacks) and model.kind == "checkpoint",
        )


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
            if not subject.checked:
                return found
            net, attacks = subject.model.net, subject.attacks
            examine = partial(examine_network, net, subject.split, right=found.right, attacks=attacks, eps=subject.eps)
            examined = self._shared(subject, lambda run: examine(run=run))
        checks = [check for path, each in examined.items() for check in judge(path, each)]
        return replace(found, checks=checks, eps_curve=eps_curve(examined))

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
    return Measured(
        **model.facts,
        eps=subject.eps,
        attacks=attacks,
        right=right,
        labels=split.labels,
        seed=run.seed,
        chunk=subject.chunk,
        indices=subject.indices,
        threats=threats,
        corruptions=measure_corruptions(model.net, split, run=run) if subject.corrupted else None,
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
    options: EvalOptions = EvalOptions(),  # it is frozen
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
) -> Evaluation:
    """Measure models one after the other; all are opened and checked before the first is attacked.

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

    Raises:
        ConfigError: the options do not fit a model or this machine, nobody says which data, or memory is short.
        DataError: the data is damaged, missing or of another form than the network.
        CheckpointError: a file is no checkpoint.
        BundleError, SignatureError, EngineError: a bundle cannot be opened or run.
        MissingExtraError: a library is not installed.
        OSError: the system cannot read or write a file.
    """
    accelerator = options.accelerator
    if options.corruptions:
        check_pillow(JPEG)  # what is missing is missed now, not after an hour of attacks
    key = public_key(trust)
    origin = None if source is None else read_source(source, load=read_checkpoint)
    read = cache(read_data)
    measured: list[Measured] = []
    with ExitStack() as stack:
        subjects = []
        for one in models:
            if isinstance(one, Bundle) or (not isinstance(one, Checkpoint) and Path(one).is_dir()):
                model = stack.enter_context(open_bundle(one, trust=key, source=origin, engine=engine))
            else:
                file = Path("checkpoint" if isinstance(one, Checkpoint) else one)
                model = open_checkpoint(read_source(one, load=read_checkpoint), file=file)
            subjects.append(options.subject(model, _images(model, data, read=read)))
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


def _images(
    model: OpenModel, data: str | os.PathLike[str] | ImageSet | None, *, read: Callable[..., ImageSet]
) -> ImageSet:
    """Return what to measure ``model`` on; warn if it is not what it was trained on."""
    record = model.training.get("data")
    record = record if isinstance(record, dict) else {}
    trained_on = shortened(str(record.get("kind", "other data")))  # of a bundle it may be anything
    if data is None and trained_on not in NAMED:
        raise ConfigError(f"{model.model} was trained on {trained_on}, which no name tells; give the same as --data")
    if isinstance(data, ImageSet):
        images = data
    else:
        spec = data_spec(data or trained_on)
        images = read(spec, image_size=wanted_size(spec, input_shape=model.input_shape))
    if images.shape != model.input_shape or len(images.class_names) != len(model.class_names):
        raise DataError(
            f"expected images {model.input_shape} of {len(model.class_names)} classes as the network was "
            f"trained on, got {images.shape} of {len(images.class_names)}; give the data it was trained on"
        )
    if images.digest != record.get("digest"):
        _log.warning(
            "warning: these are not the very images of the training of %s: test images may have been trained on",
            printable(str(model.model)),
        )
    return images
