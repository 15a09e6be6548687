"""What is measured of one model: its images, its attacks, and the options that they follow from."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from smart_common.errors import alternatives, shortened
from smart_common.names import printable
from smart_eval.attacks.base import DRAWS, NamedAttack
from smart_eval.attacks.table import parse_attacks
from smart_eval.corrupted_files import corrupted_files
from smart_eval.corruptions import CorruptedImages, OwnCorruptions, steps
from smart_eval.examination import work
from smart_eval.measure import seeded
from smart_eval.models import OpenModel
from smart_eval.threats import sources
from smart_eval.tripwire.of_models import pair_names
from smart_eval.tripwire.pair import KINDS
from smart_train.accuracy import some_indices
from smart_train.attacks import Attack
from smart_train.chunks import usual_chunk
from smart_train.data.images import ImageSet, Split
from smart_train.data.load import NAMED, data_spec, wanted_size
from smart_train.errors import ConfigError, DataError
from smart_train.training.config import DEVICES

Policy = Literal["tripwire"]
POLICIES = ("tripwire",)
"""The policies whose attackers can be measured."""

_log = logging.getLogger(__name__)


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
        corrupted: the corrupted images that it is measured on too, if any.
        checked: whether hidden gradients are looked for.
        policy: whose attackers are measured too, if any.
    """

    model: OpenModel
    images: ImageSet
    eps: float
    attacks: Sequence[NamedAttack]
    indices: npt.NDArray[np.int64] | None
    chunk: int
    threats: bool
    corrupted: CorruptedImages | None
    checked: bool
    policy: Policy | None = None

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
        each = 1 + len(self.attacks)
        corrupted = 0 if self.corrupted is None else steps(self.corrupted) * len(self.corrupted.labels)
        checks = len(paths) * work(images, eps=self.eps) if self.checked else 0
        policy = 0 if self.policy is None else len(KINDS)
        attacked = len(paths) * each + len(sources(paths)) * self.threats + policy
        return images * attacked + len(paths) * corrupted + checks


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
        mix: shares of mixes to measure too, of checkpoints; a bundle has its own.
        corruptions: measure on noisy, blurred, brighter and compressed images too.
        corruptions_from: measure on the corrupted images in this folder too, as CIFAR-10-C, CIFAR-100-C and ImageNet-C
            are published.
        threats: try images made on one path on the others.
        checks: look for hidden gradients.
        policy: ``tripwire``: also measure what it notices of attackers, those who know it among them.

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
    mix: Sequence[float] = ()
    corruptions: bool = False
    corruptions_from: str | os.PathLike[str] | None = None
    threats: bool = True
    checks: bool = True
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.attack is not None and not isinstance(self.attack, str):
            raise ConfigError(
                f"expected attacks in one text with commas, as in 'clean,pgd50x5', got {self.attack!r:.60}"
            )
        if self.device not in DEVICES:
            raise ConfigError(f"unknown device {alternatives(str(self.device), DEVICES)}")
        if self.policy is not None and self.policy not in POLICIES:
            raise ConfigError(f"unknown policy {alternatives(str(self.policy), POLICIES)}")
        if self.corruptions and self.corruptions_from is not None:
            raise ConfigError("corruptions made here and from a folder cannot be combined; leave one out")
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
            DataError: corrupted images are damaged, missing or of another form than the network.
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
        if self.policy is not None:
            pair_names(model)  # refused before anything is measured
        total, made_on = len(images.test), model.made_on
        with seeded(self.seed, device="cpu"):  # it runs the networks
            usual = usual_chunk(
                [*made_on.values()] * (DRAWS if model.randomised else 1),  # whose gradients a chunk holds at once
                model.input_shape,
                device=self.accelerator,
            )
        subject = Subject(
            model,
            images,
            eps,
            attacks,
            None if self.examples is None else some_indices(total, self.examples, seed=self.seed),
            self.chunk or usual,
            threats=self.threats and bool(attacks) and len(made_on) > 1 and not model.randomised,
            corrupted=None,
            checked=self.checks and bool(attacks) and model.kind == "checkpoint" and not model.randomised,
            policy=self.policy,
        )
        return replace(subject, corrupted=self._corrupted(subject))

    def _corrupted(self, subject: Subject) -> CorruptedImages | None:
        if self.corruptions:
            return OwnCorruptions(subject.split)
        if self.corruptions_from is None:
            return None
        model = subject.model
        found = corrupted_files(self.corruptions_from, shape=model.input_shape, class_names=model.class_names)
        if self.examples is None:
            return found
        return found.some(some_indices(len(found.labels), self.examples, seed=self.seed))


def images_of(
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
