"""Everything that decides what a training gives, beside the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from smart_common.errors import alternatives
from smart_train.attacks import Attack
from smart_train.choices import MAX_INTEGER, PRECISIONS, SCHEDULES, Argument, Precision, Schedule
from smart_train.data.augment import Augmentation
from smart_train.errors import ConfigError
from smart_train.masking.plan import MaskPlan
from smart_train.masking.structure import Structure
from smart_train.methods import METHODS, load_method
from smart_train.methods.interface import Option
from smart_train.options import check_arguments, parse_normalisation
from smart_train.training.refinements import Refinements

DEVICES = ("auto", "cpu", "cuda")
_KINDS = {
    "structure": Structure,
    "masks": MaskPlan,
    "attack": Attack,
    "augmentation": Augmentation,
    "refinements": Refinements,
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training gives, beside the data.

    Attributes:
        model, model_arguments: a name in ``ARCHITECTURES`` or ``CUSTOM``, and its arguments.
        structure: what masks may remove, and how much.
        masks: how they are found.
        permute: put channels in an order first in which ``N:M`` keeps more of the weights' magnitude.
        method, method_options: a name in ``METHODS``, and what its options are set to.
        attack: the one trained against.
        augmentation: what is done to training images before the attack.
        refinements: what is added to the method.
        normalize: what images are normalised by, as `initial_weights.normalisation` reads it.
        train_images: train on this many images, every class in its proportion; None for all.
        test_images: measure the best epoch on this many test images, chosen by the seed; None for all.
        epochs, batch_size: images that do not fill a batch wait for the next epoch; a method may give each path a part.
        learning_rate: the peak.
        schedule: how the learning rate comes and goes, see `schedule.learning_rate`.
        weight_decay: L2, on all parameters.
        seed: of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Fabric's names; weights and masks are float32 in all of them.

    Raises:
        ConfigError: if a value is out of range.
    """

    model: str = "resnet8"
    model_arguments: dict[str, Argument] = field(default_factory=dict)
    structure: Structure = field(default_factory=Structure)
    masks: MaskPlan = field(default_factory=MaskPlan)
    permute: bool = False
    method: str = "smart"
    method_options: dict[str, Option] = field(default_factory=dict)
    attack: Attack = field(default_factory=Attack)
    augmentation: Augmentation = field(default_factory=Augmentation)
    refinements: Refinements = field(default_factory=Refinements)
    normalize: str | None = None
    train_images: int | None = None
    test_images: int | None = None
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: Schedule = "cosine"
    weight_decay: float = 5e-4
    seed: int = 0
    device: str = "auto"
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise ConfigError(f"expected {name} as {kind.__name__}(...), got {value!r:.60}")
        check_arguments(self.model_arguments)
        if self.device not in DEVICES:
            raise ConfigError(f"unknown device {alternatives(str(self.device), DEVICES)}")
        if self.epochs < 1:
            raise ConfigError(f"expected 1 or more epochs, got {self.epochs}")
        if self.batch_size < 4:
            raise ConfigError(
                f"expected a batch of 4 or more, got {self.batch_size}; each path's batch norm needs two images"
            )
        if self.refinements.awp_from > self.epochs:
            raise ConfigError(
                f"awp begins in epoch {self.refinements.awp_from}, after the last of {self.epochs}; begin earlier, or "
                "leave it out"
            )
        for name in ("epochs", "batch_size", "train_images", "test_images"):
            if (getattr(self, name) or 0) > MAX_INTEGER:
                raise ConfigError(f"expected {name} of at most {MAX_INTEGER}, got {getattr(self, name)}; take fewer")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"expected a finite learning rate above 0 and weight decay of 0 or more, got {self.learning_rate} and "
                f"{self.weight_decay}; 0.1 and 5e-4 are usual"
            )
        if self.normalize not in (None, "data", "imagenet", "none"):
            parse_normalisation(str(self.normalize))
        self._check_method()
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {alternatives(str(self.precision), PRECISIONS)}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"expected a seed from 0 to {2**32 - 1}, got {self.seed}")

    def _check_method(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown method {alternatives(str(self.method), METHODS)}")
        method = load_method(self.method)
        base = getattr(method.read_options(self.method_options), "base", None)
        if method.attack not in (None, self.attack.name):
            raise ConfigError(
                f"method {self.method} trains against {method.attack}, got attack {self.attack.name}; change either"
            )
        rows = [method, *([] if base is None else [load_method(base)])]
        hard = next((row.name for row in rows if not row.soft_targets), None)
        if hard is not None and (soft := self.refinements.soft_targets):
            raise ConfigError(f"the loss of {hard} takes labels alone as targets; leave out {', '.join(soft)}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"unknown schedule {alternatives(str(self.schedule), SCHEDULES)}")

    def check_device(self) -> None:
        """Raise ConfigError if the device is not there, or has not the precision."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("no CUDA device that torch can use; take --device cpu")
        if self.precision == "16-mixed" and (self.device == "cpu" or not torch.cuda.is_available()):
            raise ConfigError("precision 16-mixed needs a CUDA device; use bf16-mixed or 32-true on a CPU")

    def record(self) -> dict[str, Any]:
        """Return the configuration in plain values, the options of the method complete."""
        options = asdict(load_method(self.method).read_options(self.method_options))
        record = asdict(replace(self, method_options=options))
        if not self.augmentation.resized_crop:  # nor did it stand in the files of the time when there was none
            del record["augmentation"]["resized_crop"]
        if not options:  # nor did it stand in the files of the time when methods had none
            del record["method_options"]
        if self.normalize is None:  # likewise
            del record["normalize"]
        if self.schedule == TrainConfig.schedule:  # likewise
            del record["schedule"]
        if self.refinements == Refinements():  # likewise
            del record["refinements"]
        return record
