"""The labelled images that an export calibrates on, and those that judge it: never the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smart_common.roles import Role
from smart_export.errors import ExportError
from smart_export.precision import INT8, Precision
from smart_export.verify import Images
from smart_train import Attack, Checkpoint
from smart_train.accuracy import some_examples, to_tensor
from smart_train.checkpoint.format import Samples
from smart_train.checkpoint.samples import halves, make_samples
from smart_train.data.images import ImageSet, Split
from smart_train.data.source import Progress, no_progress

SAMPLES = "samples"
"""The source of a checkpoint's own images."""

ATTACK_STEPS = 10
"""Of PGD on images of the user's: half of what a checkpoint's own samples had, since it is what takes the time."""

CALIBRATION_IMAGES = 256  # of the user's: as many as a checkpoint carries
_SEED = 0  # of which images are taken, how they are divided, and the attack's random starts


@dataclass(frozen=True, eq=False)
class Evidence:
    """Labelled images, with an adversarial version for each path that is judged by it or calibrated on such ones.

    ``source`` is ``samples`` for those of the checkpoint, else the kind of data, whose ``digest`` it has.
    """

    samples: Samples
    source: str = SAMPLES
    digest: str | None = None

    def calibrating(self, path: str, *, role: Role) -> Images:
        """Return the images, their versions attacked on ``path``, or both, as ``role`` has it: float32 (N, C, H, W)."""
        clean = [self.samples.images] if role.sees_clean_images else []
        attacked = [self.samples.adversarial[path]] if role.sees_attacks else []
        images: Images = to_tensor(torch.cat([*clean, *attacked])).numpy()
        return images

    def record(self) -> dict[str, Any]:
        """Return it as plain values, for the manifest."""
        return {
            "source": self.source,
            "digest": self.digest,
            "images": len(self.samples.labels),
            "attack": self.samples.attack,
            "eps": self.samples.eps,
        }


def divide(
    checkpoint: Checkpoint, *, precision: Precision, judge: Evidence | None = None, calibrate: Evidence | None = None
) -> tuple[Evidence, Evidence | None]:
    """Return what judges, and for int8 what is calibrated on.

    The checkpoint's own images stand in for what was not given; if they must do both, each half does one.

    Raises:
        ExportError: there are too few of them to halve.
    """
    own = Evidence(checkpoint.samples)
    if precision != INT8:
        return judge or own, None
    if judge is not None or calibrate is not None:
        return judge or own, calibrate or own
    if len(own.samples.labels) < 2:
        raise ExportError(
            "the checkpoint has too few samples to calibrate on some and judge by others; give images with "
            "--calibration"
        )
    first, second = halves(own.samples, seed=_SEED)
    return Evidence(second), Evidence(first)


def judging_evidence(
    data: ImageSet, checkpoint: Checkpoint, *, images: int, progress: Progress = no_progress
) -> Evidence:
    """Return up to ``images`` test images of ``data``, attacked on each path with PGD-10, which ``progress`` shows.

    Raises:
        ExportError: ``data`` has images of another size, or other classes than the network.
    """
    return _evidence(data, checkpoint, data.test, images=images, paths=checkpoint.net.path_names, progress=progress)


def calibrating_evidence(
    data: ImageSet, checkpoint: Checkpoint, *, images: int = CALIBRATION_IMAGES, progress: Progress = no_progress
) -> Evidence:
    """Return up to ``images`` training images of ``data``, attacked as above on each path that is for that."""
    attacked = [path for path in checkpoint.net.path_names if checkpoint.role(path).sees_attacks]
    return _evidence(data, checkpoint, data.train, images=images, paths=attacked, progress=progress)


def _evidence(
    data: ImageSet, checkpoint: Checkpoint, split: Split, *, images: int, paths: Sequence[str], progress: Progress
) -> Evidence:
    remedy = "give the data it was trained on"
    if data.shape != checkpoint.input_shape:
        raise ExportError(f"expected images {checkpoint.input_shape} as the network takes, got {data.shape}; {remedy}")
    classes, got = len(checkpoint.class_names), len(data.class_names)
    if got != classes:
        raise ExportError(f"expected {classes} classes as the network has, got {got}; {remedy}")
    chosen = some_examples(split, min(images, len(split)), seed=_SEED)
    attack = Attack(eps=checkpoint.samples.eps, steps=ATTACK_STEPS)
    with progress(f"{attack.label} on {data.kind}", total=len(paths) * len(chosen)) as advance:
        samples = make_samples(
            checkpoint.net,
            torch.from_numpy(chosen.images),
            torch.from_numpy(chosen.labels),
            attack=attack,
            seed=_SEED,
            paths=paths,
            done=lambda count: advance(count=count),
        )
    return Evidence(samples, data.kind, data.digest)
