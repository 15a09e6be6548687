"""A run of smart-eval: what is wished of each model, and how it is measured, by one process or by several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from smart_common.version import version
from smart_devices.python_environment import version_of
from smart_eval.attacks.base import NamedAttack
from smart_eval.attacks.table import parse_attacks
from smart_eval.checks import judge
from smart_eval.corruptions import STEPS, measure_corruptions
from smart_eval.examination import eps_curve, examine_network, work
from smart_eval.measure import measure
from smart_eval.models import OpenModel
from smart_eval.records import Records
from smart_eval.report import Measured
from smart_eval.shards import Shards
from smart_eval.threats import measure_threats, sources, strongest_pgd
from smart_train.accuracy import some_indices
from smart_train.attacks import Attack
from smart_train.chunks import enough_memory, usual_chunk
from smart_train.data.images import ImageSet, Split

_T = TypeVar("_T")


@dataclass(frozen=True)
class Subject:
    """One model with what it is measured by.

    Attributes:
        file: its file, or a bundle's folder.
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
class Wishes:
    """What the user wants measured of every model; None where a model's own value is to be taken."""

    attack: str | None
    eps: float | None
    steps: int
    restarts: int
    step_size: float | None
    examples: int | None
    seed: int
    chunk: int | None
    device: str
    corruptions: bool
    threats: bool
    checks: bool

    def subject(self, file: Path, model: OpenModel, images: ImageSet) -> Subject:
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
            file,
            model,
            images,
            eps,
            attacks,
            None if self.examples is None else some_indices(total, self.examples, seed=self.seed),
            self.chunk or usual_chunk([*made_on.values()], model.input_shape, device=self.device),
            threats=self.threats and bool(attacks) and len(made_on) > 1,
            corrupted=self.corruptions,
            checked=self.checks and bool(attacks) and model.kind == "checkpoint",
        )


@dataclass(frozen=True)
class Run:
    """What all models are measured with.

    Attributes:
        records: what is known already, and where results are kept.
        shards: the processes that share the run.
        options: seed and device, as `measure` takes them.
        made_with: from `made_with`.
        advance: called with what was done and the number of images, chunk by chunk.
    """

    records: Records
    shards: Shards
    options: Mapping[str, Any]
    made_with: Mapping[str, Any]
    advance: Callable[[str, int], None]

    def measured(self, subject: Subject) -> Measured:
        """Return all that is wanted of a model, which is on the device; raises ConfigError if memory is short."""
        with enough_memory(subject.chunk):
            found = self._shared(partial(self._attacked, subject))
            return self._checked(subject, found) if subject.checked else found

    def _checked(self, subject: Subject, found: Measured) -> Measured:
        examine = partial(examine_network, subject.model.net, subject.split, right=found.right, eps=subject.eps)
        examined = self._shared(partial(examine, attacks=subject.attacks, **self._common(subject)))
        checks = [check for path, each in examined.items() for check in judge(path, each)]
        return replace(found, checks=checks, eps_curve=eps_curve(examined))

    def _shared(self, compute: Callable[..., _T]) -> _T:
        result = compute(done=lambda path, name, count: self.advance(f"{path}, {name}", count))
        if self.shards.world > 1:
            self.records.unite()
            result = compute(done=lambda _, __, ___: None)  # put together of what all know
        return result

    def _common(self, subject: Subject) -> dict[str, Any]:
        about = {**subject.model.about, "data": subject.images.digest, "chosen": subject.chosen, **self.made_with}
        return {**self.options, "chunk": subject.chunk, "records": self.records, "about": about}

    def _attacked(self, subject: Subject, *, done: Callable[[str, str, int], None]) -> Measured:
        model, split, attacks = subject.model, subject.split, subject.attacks
        common = {**self._common(subject), "done": done}
        right = measure(model.net, split, attacks=attacks, **common)
        threats = None
        if subject.threats:
            paths = {name: model.net.path(name) for name in model.net.path_names}
            pgd = strongest_pgd(attacks, eps=subject.eps)
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


def made_with(device: torch.device) -> dict[str, Any]:
    """Return what figures computed on ``device`` depend on to the bit, beside model, images and options."""
    libraries = ("torch", "pyautoattack", "pillow", "onnxruntime")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "smart-edge": version(),
        **{library: version_of(library) for library in libraries},
    }
