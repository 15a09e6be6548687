"""What may be added to any method: softer targets, extra images, perturbed and averaged weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from smart_common.errors import alternatives
from smart_train.choices import AVERAGES, MAX_INTEGER, Average
from smart_train.errors import ConfigError


@dataclass(frozen=True)
class Refinements:
    """What is added to the training of a method; the defaults add nothing.

    Attributes:
        label_smoothing: what of each target is spread evenly over all classes, in [0, 1).
        cutmix: paste a part of another image into each, the share drawn from Beta(cutmix, cutmix) (Yun et al. 2019,
            arXiv 1905.04899); 0 for never.
        distill: how much a teacher's probabilities count in the targets, in [0, 1] (Chen and Lee 2021, arXiv
            2111.02331).
        temperature: what the teacher's scores are divided by before.
        extra_share: what of each batch are extra images, in [0, 1) (Gowal et al. 2021, arXiv 2110.09468).
        awp: how far weights are moved against the loss, as a fraction of their norm (Wu et al. 2020, arXiv 2004.05884);
            0 for not at all.
        awp_from: the first epoch of that.
        average: of the weights that are deployed: ``none``, ``ema`` (an exponential mean over steps) or ``swa`` (the
            mean over epochs; Izmailov et al. 2018, arXiv 1803.05407).
        ema_decay: of ``ema``, in [0, 1).
        swa_from: the part of the training after which ``swa`` begins, in [0, 1).

    Raises:
        ConfigError: if a value is out of range, or one is given that has no effect without another.
    """

    label_smoothing: float = 0.0
    cutmix: float = 0.0
    distill: float = 0.0
    temperature: float = 1.0
    extra_share: float = 0.0
    awp: float = 0.0
    awp_from: int = 1
    average: Average = "none"
    ema_decay: float = 0.995
    swa_from: float = 0.75

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "extra_share", "ema_decay", "swa_from"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ConfigError(f"expected {name} from 0 to below 1, got {value}")
        if not 0 <= self.distill <= 1:
            raise ConfigError(f"expected distill in [0, 1], got {self.distill}; 0.5 gives teacher and labels half each")
        for name, usual in (("cutmix", 1), ("awp", 0.005)):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"expected {name} of 0 or more, got {value}; {usual} is usual")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"expected a temperature above 0, got {self.temperature}; 1 leaves scores as they are")
        if not 1 <= self.awp_from <= MAX_INTEGER:
            raise ConfigError(f"expected awp_from of 1 or more, got {self.awp_from}; it is the number of an epoch")
        if self.average not in AVERAGES:
            raise ConfigError(f"unknown average {alternatives(str(self.average), AVERAGES)}")
        for name, needed, used in (
            ("temperature", "distill above 0", self.distill > 0),
            ("awp_from", "awp above 0", self.awp > 0),
            ("ema_decay", "average ema", self.average == "ema"),
            ("swa_from", "average swa", self.average == "swa"),
        ):
            if not used and getattr(self, name) != getattr(Refinements, name):
                raise ConfigError(f"{name} has no effect without {needed}; give both, or neither")

    @property
    def soft_targets(self) -> tuple[str, ...]:
        """What of it makes targets other than labels."""
        return tuple(name for name in ("label_smoothing", "cutmix", "distill") if getattr(self, name))
