"""What a training measures: the validation figures by which the best epoch is chosen, and the report at its end.

All of it goes by the roles of the paths: a path for clean images is judged by its accuracy on them, one for attacked
images by its accuracy under attack, one for both by the mean of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from smart_common.roles import Role
from smart_train.accuracy import PathAccuracy, accuracy, evaluate_path
from smart_train.attacks import Attack
from smart_train.checkpoint.format import Samples
from smart_train.checkpoint.samples import make_samples
from smart_train.data.images import VALIDATION_SAMPLES, Split
from smart_train.masking.network import SmartNetwork
from smart_train.training.schedule import Stream, stream_generator, stream_seed

SELECTION_STEPS = 10  # PGD steps on the validation split after each epoch that may be the best
REPORT_STEPS = 20  # PGD steps of the samples and of the final figures
SELECTION_IMAGES = 1000  # at most so many validation images are attacked after each epoch


def selection_attack(eps: float) -> Attack:
    """Return the attack by which the best epoch is chosen: PGD-10, one restart."""
    return Attack(eps=eps, steps=SELECTION_STEPS)


def report_attack(eps: float) -> Attack:
    """Return the attack of the samples and of reported figures: PGD-20, one restart."""
    return Attack(eps=eps, steps=REPORT_STEPS)


@dataclass(frozen=True)
class Measurement:
    """How a training measures its network.

    Attributes:
        eps: radius of the attacks in pixel units.
        seed: of the training.
        device: where the network is.
    """

    eps: float
    seed: int
    device: torch.device

    def validate(self, net: SmartNetwork, split: Split, *, roles: Mapping[str, Role]) -> tuple[dict[str, float], float]:
        """Return the columns of the history that an epoch has on the validation split, and its score in [0, 1].

        Every path has ``PATH_path_clean_accuracy``, those that see attacks ``PATH_path_robust_accuracy`` on at most
        ``SELECTION_IMAGES`` images. The score is the mean of the figures that the paths are judged by.
        """
        part = Split(split.images[:SELECTION_IMAGES], split.labels[:SELECTION_IMAGES])
        attack = selection_attack(self.eps)
        columns: dict[str, float] = {}
        scores = []
        for name in net.path_names:
            role, judged = roles[name], []
            clean = columns[f"{name}_path_clean_accuracy"] = self._accuracy(net, name, split, attack=None)
            if role.sees_clean_images:
                judged.append(clean)
            if role.sees_attacks:
                robust = columns[f"{name}_path_robust_accuracy"] = self._accuracy(net, name, part, attack=attack)
                judged.append(robust)
            scores.append(fmean(judged))
        return columns, fmean(scores)

    def _accuracy(self, net: SmartNetwork, path: str, split: Split, *, attack: Attack | None) -> float:
        generator = stream_generator(self.seed, Stream.VALIDATION, device=self.device)
        return accuracy(net.path(path), split, attack=attack, generator=generator, device=self.device).value

    def samples(self, net: SmartNetwork, split: Split, *, attack: Attack) -> Samples:
        """Return the images of the validation split that a checkpoint carries, attacked on every path."""
        return make_samples(
            net,
            torch.from_numpy(split.images[:VALIDATION_SAMPLES]),
            torch.from_numpy(split.labels[:VALIDATION_SAMPLES]),
            attack=attack,
            seed=stream_seed(self.seed, Stream.SAMPLES),
            device=self.device,
        )

    def report_share(self, roles: Mapping[str, Role], *, validation: Split, test: Split) -> float:
        """Return how many times as long as `validate` the measurements at the end take, by the network's passes."""
        attacked = min(len(validation), SELECTION_IMAGES)
        validated = sum(
            _passes(len(validation), steps=0) + role.sees_attacks * _passes(attacked, steps=SELECTION_STEPS)
            for role in roles.values()
        )
        samples = min(len(validation), VALIDATION_SAMPLES)
        one_path = _passes(len(test), steps=0) + _passes(len(test) + samples, steps=REPORT_STEPS)
        return len(roles) * one_path / validated

    def report(self, net: SmartNetwork, split: Split) -> dict[str, PathAccuracy]:
        """Measure every path on the test split, clean and under the attack of reports."""
        return {
            path: evaluate_path(
                net.path(path),
                split,
                attack=report_attack(self.eps),
                generator=stream_generator(self.seed, Stream.TEST, device=self.device),
                device=self.device,
            )
            for path in net.path_names
        }


def _passes(images: int, *, steps: int) -> int:
    """Forward passes' worth of work: a step has one and its gradient, which costs about two; one more judges."""
    return images * (1 + 3 * steps)


def figures(found: PathAccuracy, attack: Attack, *, split: str) -> dict[str, Any]:
    """Return one path's figures as the checkpoint's ``metrics`` hold them."""
    return {
        "clean_accuracy": found.clean.value,
        "clean_interval": list(found.clean.interval),
        "robust_accuracy": found.robust.value,
        "robust_interval": list(found.robust.interval),
        "attack": attack.label,
        "eps": attack.eps,
        "examples": found.clean.total,
        "split": split,
    }
