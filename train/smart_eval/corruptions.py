"""Accuracy on images that nobody attacked but that are not as they should be: noise, blur, brightness, JPEG.

The set that is made here follows Hendrycks and Dietterich (2019, arXiv 1903.12261) in its kinds and not in its
strengths, so its figures compare with each other, not with those on CIFAR-10-C or ImageNet-C. What was published as
files is read by `smart_eval.corrupted_files` and measured here too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from smart_eval.measure import Paths, Run, chunk_seed, exactly, seeded
from smart_eval.records import Right
from smart_runtime.pictures import check_pillow
from smart_train.accuracy import Accuracy, classified_rightly, to_tensor, wilson
from smart_train.data.images import Labels, Pixels, Split
from smart_train.masking.attack_mode import attack_mode

SET = "smart-edge corruptions v1"
"""The name of kinds and strengths together: other ones are another set."""

JPEG = "the corruption jpeg"
"""What needs Pillow here."""

_Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """One kind of corruption.

    Attributes:
        name: in reports.
        parameter: what its strength is called, with its unit.
        strengths: by severity, 1 to 5.
    """

    name: str
    parameter: str
    strengths: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Corruption(Kind):
    """One kind of corruption that is made here.

    Attributes:
        change: images float32 (N, H, W, C) in [0, 1], strength and generator to images of that shape, in any range.
    """

    change: Callable[[_Floats, float, np.random.Generator], _Floats]

    def __call__(self, images: Pixels, *, severity: int, seed: int) -> Pixels:
        """Return corrupted images, uint8 (N, H, W, C) as ``images``, rounded to the 8 bits of a camera.

        Args:
            images: uint8 (N, H, W, C).
            severity: 1 to 5.
            seed: of what is random, which is the same at each severity.

        Raises:
            MissingExtraError: it needs Pillow, which is not installed.
        """
        pixels = images.astype(np.float32) / np.float32(255)
        changed = self.change(pixels, self.strengths[severity - 1], np.random.default_rng(seed))
        found: Pixels = np.rint(np.clip(changed, 0, 1) * np.float32(255)).astype(np.uint8)
        return found


def _noise(images: _Floats, std: float, generator: np.random.Generator) -> _Floats:
    return images + np.float32(std) * generator.standard_normal(images.shape, dtype=np.float32)


def _blur(images: _Floats, sigma: float, _: np.random.Generator) -> _Floats:
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415  # few evaluations need it

    # "reflect" repeats the border pixel, so no darkness and no other side of the picture comes in.
    found: _Floats = gaussian_filter(images, sigma=(0, sigma, sigma, 0), mode="reflect", truncate=4.0)
    return found


def _brighter(images: _Floats, offset: float, _: np.random.Generator) -> _Floats:
    return images + np.float32(offset)


def _jpeg(images: _Floats, quality: float, _: np.random.Generator) -> _Floats:
    check_pillow(JPEG)
    from PIL import Image  # noqa: PLC0415  # an extra

    found = np.empty_like(images)
    # Pictures have one channel or three; of any other number each is a picture of its own.
    groups = [slice(None)] if images.shape[3] in {1, 3} else [slice(c, c + 1) for c in range(images.shape[3])]
    for number, pixels in enumerate(np.rint(images * np.float32(255)).astype(np.uint8)):
        for channels in groups:
            part = pixels[:, :, channels]
            file = io.BytesIO()
            picture = Image.fromarray(part[:, :, 0] if part.shape[2] == 1 else part)
            picture.save(file, "JPEG", quality=int(quality), subsampling="4:2:0")  # as cameras write it
            with Image.open(file, formats=["JPEG"]) as read:
                found[number, :, :, channels] = np.asarray(read, dtype=np.float32).reshape(part.shape) / np.float32(255)
    return found


CORRUPTIONS: tuple[Corruption, ...] = (
    # From what a sensor has in the shade (5 of 255 levels) by doubling, 6 dB less signal to noise at each step.
    Corruption("gaussian-noise", "standard deviation, pixels in [0, 1]", (0.02, 0.04, 0.08, 0.16, 0.32), _noise),
    # From where a neighbour weighs 4%, by half as much again at each step.
    Corruption("gaussian-blur", "standard deviation, pixels of the network's input", (0.4, 0.6, 0.9, 1.35, 2.0), _blur),
    # In equal steps, to where the upper half of all values is white.
    Corruption("brightness", "added, pixels in [0, 1]", (0.1, 0.2, 0.3, 0.4, 0.5), _brighter),
    # 40%, 100%, 200%, 333% and 625% of the quantisation table of libjpeg (its jpeg_quality_scaling): about twice each.
    Corruption("jpeg", "quality of libjpeg, 4:2:0", (80, 50, 25, 15, 8), _jpeg),
)


class CorruptedImages(Protocol):
    """A set of corrupted images: the same ones under each kind, at each severity."""

    @property
    def name(self) -> str:
        """Of the set: of kinds and strengths together."""

    @property
    def kinds(self) -> Sequence[Kind]:
        """The kinds of corruption."""

    @property
    def labels(self) -> Labels:
        """Of the images, int64 (N,)."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What results depend on beside the images that are measured without corruption, in values that JSON has."""

    def images(self, kind: Kind, where: slice, *, severity: int, seed: int) -> Pixels:
        """Return the images that ``where`` names, uint8 (n, H, W, C); ``seed`` is of what is random."""


@dataclass(frozen=True)
class OwnCorruptions:
    """`CORRUPTIONS` of a split; raises MissingExtraError if Pillow is not installed."""

    split: Split
    name: str = SET

    def __post_init__(self) -> None:
        check_pillow(JPEG)

    @property
    def kinds(self) -> Sequence[Corruption]:
        """See `CorruptedImages`."""
        return CORRUPTIONS

    @property
    def labels(self) -> Labels:
        """See `CorruptedImages`."""
        return self.split.labels

    @property
    def about(self) -> Mapping[str, Any]:
        """See `CorruptedImages`."""
        return {"set": SET}

    def images(self, kind: Kind, where: slice, *, severity: int, seed: int) -> Pixels:
        """See `CorruptedImages`."""
        assert isinstance(kind, Corruption)
        return kind(self.split.images[where], severity=severity, seed=seed)


@dataclass(frozen=True)
class Corrupted:
    """Which images of a ``set`` each path gets right under one corruption, by path, bool (N,)."""

    corruption: Kind
    severity: int
    right: Mapping[str, Right]
    set: str = SET

    def accuracy(self, path: str) -> Accuracy:
        """Return the accuracy of a path."""
        return Accuracy.of(self.right[path])

    def record(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "set": self.set,
            "name": self.corruption.name,
            "severity": self.severity,
            "parameter": self.corruption.strengths[self.severity - 1],
            "parameter_meaning": self.corruption.parameter,
            "paths": {path: self.accuracy(path).record for path in self.right},
        }


def steps(images: CorruptedImages) -> int:
    """Return how often each image is classified by each path."""
    return sum(len(kind.strengths) for kind in images.kinds)


def measure_corruptions(net: Paths, images: CorruptedImages, *, run: Run) -> list[Corrupted]:
    """Return what each path gets right under each kind of ``images``, at each severity.

    The other arguments are those of `measure`; what is random is the same for each path and, but for its strength, each
    severity.
    """
    about = {**run.settings(images.labels), **images.about}
    results = []
    with exactly(), ExitStack() as held:
        models = {path: net.path(path) for path in net.path_names}
        for model in models.values():
            held.enter_context(attack_mode(model))
        for corruption in images.kinds:
            for severity, strength in enumerate(corruption.strengths, start=1):
                right: dict[str, list[Right]] = {path: [] for path in models}
                for number, where in run.chunks(len(images.labels)):
                    labels = images.labels[where]
                    seed = chunk_seed(run.seed, corruption.name, number)
                    # Made once for all paths, and not at all where all is known.
                    corrupted = cache(partial(images.images, corruption, where, severity=severity, seed=seed))
                    for path, model in models.items():
                        key = {
                            **about,
                            "path": path,
                            "corruption": corruption.name,
                            "severity": severity,
                            "parameter": strength,
                            "chunk": number,
                        }
                        judge = partial(_right, model, corrupted, labels, seed=seed, device=run.device)
                        right[path].append(run.records.of(key, count=len(labels), judge=judge))
                        run.done(path, f"{corruption.name} {severity}", len(labels))
                found = {path: np.concatenate(parts) for path, parts in right.items()}
                results.append(Corrupted(corruption, severity, found, images.name))
    return results


def _right(
    model: torch.nn.Module, corrupted: Callable[[], Pixels], labels: Labels, *, seed: int, device: torch.device | str
) -> Right:
    images = to_tensor(torch.from_numpy(corrupted()).to(device))
    with seeded(seed, device=device):
        right: Right = classified_rightly(model, images, torch.from_numpy(labels).to(device)).cpu().numpy()
    return right


@dataclass(frozen=True)
class Mean:
    """The mean accuracy of a path over all kinds and severities, each counting alike, as RobustBench counts it.

    The interval is Wilson's of a fraction of so many images: no narrower than it should be, since the share of
    corruptions that an image withstands varies less than right and wrong.
    """

    value: float
    interval: tuple[float, float]

    @property
    def record(self) -> dict[str, Any]:
        """It as plain values, for reports."""
        return {"accuracy": self.value, "interval": list(self.interval)}


def mean_of(found: Sequence[Corrupted], path: str) -> Mean:
    """Return the mean accuracy of a path over all that was found."""
    value = float(np.mean([one.accuracy(path).value for one in found]))
    return Mean(value, wilson(value, len(found[0].right[path])))


def mean_record(found: Sequence[Corrupted]) -> dict[str, Any]:
    """Return the mean of each path for machines."""
    return {
        "set": found[0].set,
        "kinds": len({one.corruption.name for one in found}),
        "severities": len({one.severity for one in found}),
        "examples": len(next(iter(found[0].right.values()))),
        "paths": {path: mean_of(found, path).record for path in found[0].right},
    }


def table(measured: Sequence[tuple[str, Sequence[Corrupted]]]) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows for people, of models by name: a row for each path and kind, and the mean."""
    several = len(measured) > 1
    severities = sorted({one.severity for _, found in measured for one in found})
    rows = []
    for model, found in measured:
        for path in found[0].right:
            who = [*([model] if several else []), path]
            for kind in dict.fromkeys(one.corruption for one in found):
                own = [one for one in found if one.corruption is kind]
                rows.append(
                    [*who, kind.name, *(str(one.accuracy(path)) for one in own), f"{mean_of(own, path).value:.3f}"]
                )
            means = [mean_of([one for one in found if one.severity == severity], path) for severity in severities]
            mean = mean_of(found, path)
            low, high = mean.interval
            rows.append(
                [*who, "mean", *(f"{one.value:.3f}" for one in means), f"{mean.value:.3f}  [{low:.3f}, {high:.3f}]"]
            )
    columns = [*(["model"] if several else []), "path", "corruption", *map(str, severities), "mean"]
    sets = ", ".join(dict.fromkeys(found[0].set for _, found in measured))
    return f"{sets}, by severity, 95% intervals", columns, rows
