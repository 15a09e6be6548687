"""Streams of frames before a tripwire: how long it takes to its alarm, drawn from measured log-likelihood ratios."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smart_runtime.tripwire.pair_scores import Values

STREAMS = 201
_BLOCK = 250
MOST_SHADOWS = 5_000
"""A stream without an alarm in so many shadow frames has none."""


@dataclass(frozen=True)
class Alarms:
    """When the alarm came in many streams, in frames from the first attacked one on.

    Attributes:
        frames: of each stream, ascending; infinite where `MOST_SHADOWS` shadow frames brought no alarm.
    """

    frames: Values

    @property
    def median(self) -> float | None:
        """The median; None if half of the streams or more had no alarm."""
        return _finite(np.median(self.frames))

    @property
    def late(self) -> float | None:
        """What nine of ten streams do not exceed; None if more than a tenth had no alarm."""
        return _finite(np.quantile(self.frames, 0.9, method="higher"))


def alarms(
    clean: Values, attacked: Values, *, share: float, threshold: float, every: int, seed: int, streams: int = STREAMS
) -> Alarms:
    """Return when S = max(0, S + llr) reaches ``threshold`` in streams of independent frames, S being 0 at first.

    Args:
        clean: log-likelihood ratios of measured frames, (N,) in nats, to draw from.
        attacked: those of attacked frames, (M,).
        share: of the frames that is attacked, in [0, 1].
        threshold: in nats.
        every: the shadow sees one of so many frames, by chance.
        seed: of the draws.
        streams: how many; odd, so that one is in the middle.
    """
    random = np.random.default_rng(seed)
    sums, frames = np.zeros((streams, 1)), np.zeros((streams, 1))
    found = np.full(streams, np.inf)
    left = np.arange(streams)
    for _ in range(MOST_SHADOWS // _BLOCK):
        size = (len(left), _BLOCK)
        at = frames[left] + np.cumsum(random.geometric(1 / every, size), axis=1)
        drawn = np.where(random.random(size) < share, random.choice(attacked, size), random.choice(clean, size))
        reached = _cusum(sums[left], drawn)
        over = reached >= threshold
        alarmed = over.any(axis=1)
        found[left[alarmed]] = at[alarmed, over[alarmed].argmax(axis=1)]
        sums[left], frames[left] = reached[:, -1:], at[:, -1:]
        left = left[~alarmed]
        if not len(left):
            break
    return Alarms(np.sort(found))


def _cusum(before: Values, added: Values) -> Values:
    """Return S = max(0, S + llr) after each of ``added`` (N, T), from ``before`` (N, 1): a walk less its lowest."""
    walk = before + np.cumsum(added, axis=1)
    return np.asarray(walk - np.minimum(np.minimum.accumulate(walk, axis=1), 0), dtype=np.float64)


def false_alarms(clean: Values, *, frames: int, threshold: float, every: int, seed: int) -> int:
    """Return how often S reaches ``threshold`` in one stream of clean frames; after each it is 0 again."""
    random = np.random.default_rng(seed)
    total, count = 0.0, 0
    for llr in random.choice(clean, random.binomial(frames, 1 / every)):
        total = max(0.0, total + llr)
        if total >= threshold:
            total, count = 0.0, count + 1
    return count


def auc(attacked: Values, clean: Values) -> float:
    """Return the area under the ROC curve: how often an attacked frame is above a clean one, ties half."""
    order = np.concatenate([clean, attacked])
    _, inverse, counts = np.unique(order, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[len(clean) :].sum() - len(attacked) * (len(attacked) + 1) / 2
    return float(above / (len(clean) * len(attacked)))


def roc(attacked: Values, clean: Values) -> NDArray[np.float64]:
    """Return (false alarms, caught) as fractions of the frames, over all thresholds from the highest, (T, 2)."""
    thresholds = np.unique(np.concatenate([clean, attacked]))[::-1]
    caught = 1 - np.searchsorted(np.sort(attacked), thresholds) / len(attacked)
    false = 1 - np.searchsorted(np.sort(clean), thresholds) / len(clean)
    return np.vstack([[0.0, 0.0], np.column_stack([false, caught])])


def _finite(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
