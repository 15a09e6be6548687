"""Temperature scaling: probabilities that are right as often as they say (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from smart_runtime.bundle.mixes import FittedTemperature
from smart_train.accuracy import CHUNK, to_tensor
from smart_train.checkpoint.format import Checkpoint
from smart_train.checkpoint.samples import halves
from smart_train.masking.attack_mode import attack_mode

Scores = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

LEAST, MOST = 0.05, 20.0
"""What a temperature may come out as: samples that are all right, or all wrong, would drive it to 0 or to infinity."""

BINS = 15
"""Of equal width, as in the paper's experiments."""

_SEED = 0  # of the halves
_GOLDEN = (5**0.5 - 1) / 2
_STEPS = 60  # of the search: each leaves 0.62 of the span


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The images of which the probability of the named class lies in (low, high]: their number and two means."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def log_likelihoods(scores: Scores, labels: Labels, *, temperature: float) -> npt.NDArray[np.float64]:
    """Return log softmax(scores / temperature) of each label, float64 (N,); scores are (N, classes)."""
    scaled = scores.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = scaled[np.arange(len(labels)), labels] - np.log(np.exp(scaled).sum(axis=1))
    return found


def fit_temperature(scores: Scores, labels: Labels) -> float:
    """Return the temperature in [`LEAST`, `MOST`] of the least mean negative log-likelihood.

    The likelihood has one minimum over 1 / T, since it is convex there; golden section over log T finds it.
    """

    def loss(log_t: float) -> float:
        return -float(log_likelihoods(scores, labels, temperature=float(np.exp(log_t))).mean())

    low, high = float(np.log(LEAST)), float(np.log(MOST))
    one, other = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_one, at_other = loss(one), loss(other)
    for _ in range(_STEPS):
        if at_one <= at_other:
            high, other, at_other = other, one, at_one
            one = high - _GOLDEN * (high - low)
            at_one = loss(one)
        else:
            low, one, at_one = one, other, at_other
            other = low + _GOLDEN * (high - low)
            at_other = loss(other)
    return float(np.exp((low + high) / 2))


def reliability(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Return the bins that hold images; ``confidence`` (N,) is the probability of the class that each is given."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return [
        ReliabilityBin(
            low=float(number / BINS),
            high=float((number + 1) / BINS),
            images=int(own.sum()),
            confidence=float(confidence[own].mean()),
            accuracy=float(right[own].mean()),
        )
        for number in range(BINS)
        if (own := bins == number).any()
    ]


def calibration_error(bins: list[ReliabilityBin]) -> float:
    """Return the expected calibration error: the mean of |accuracy - confidence| over the images (equation 3)."""
    total = sum(one.images for one in bins)
    return sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / total


def error_of(scores: Scores, labels: Labels, *, temperature: float) -> float:
    """Return the expected calibration error of softmax(scores / temperature)."""
    return calibration_error(reliability(*confidence_of(scores, labels, temperature=temperature)))


def confidence_of(
    scores: Scores, labels: Labels, *, temperature: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the probability of the class that each image is given, and whether that is its label."""
    named = scores.argmax(axis=1)
    return np.exp(log_likelihoods(scores, named, temperature=temperature)), named == labels


def temperature_of(checkpoint: Checkpoint, path: str) -> FittedTemperature:
    """Fit a path's temperature on one half of the checkpoint's clean samples, and judge it on the other half.

    Clean ones for every role: of attacked images nobody knows which attack will come, and a temperature that fits
    those of the training would call clean frames doubtful.
    """
    fitting, judging = halves(checkpoint.samples, seed=_SEED)
    model = checkpoint.net.path(path)
    parts = []
    with attack_mode(model), torch.no_grad():
        for half in (fitting, judging):
            scores = [model(to_tensor(images)).numpy() for images in torch.split(half.images, CHUNK)]
            parts.append((np.concatenate(scores), half.labels.numpy()))
    temperature = fit_temperature(*parts[0])
    return FittedTemperature(
        temperature=temperature,
        fitted_images=len(fitting.labels),
        images=len(judging.labels),
        error_before=error_of(*parts[1], temperature=1.0),
        error_after=error_of(*parts[1], temperature=temperature),
    )
