"""What clean and attacked frames look like to one pair of paths, counted in few bins, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from smart_common.documents import Reader
from smart_common.errors import shortened
from smart_runtime.errors import InputError
from smart_runtime.tripwire.pair_scores import SCORES, Logits, Values, at_temperature, confidence
from smart_runtime.tripwire.run_lengths import LONGEST, STEPS_PER_NAT, run_length, threshold_for

Counts: TypeAlias = tuple[tuple[int, ...], ...]
"""Frames by bin of the score (rows) and of the confidence (columns)."""

Pair: TypeAlias = tuple[Logits, Logits]
"""The logits of the clean and of the robust path on the same frames, each (N, classes)."""

AT_CLEAN = "aimed-at-clean"
AT_ROBUST = "aimed-at-robust"
SILENT = "silent"
KINDS = (AT_CLEAN, AT_ROBUST, SILENT)
"""The kinds of attacked frames: made against one of the paths, or to let both take the same wrong class."""

BINS = (16, 8)
LEAST_FRAMES = 32
"""Fewer frames of a kind say nothing that a threshold could stand on."""

MOST_BINS = 32
"""Of each axis."""

MOST_COUNT = 10**9
"""In one bin."""

MOST_LLR = 5.0
"""In nats: no frame says more, so at one false alarm a day none raises an alarm alone."""

_PSEUDO_FRAMES = 1.0
_TO_NEIGHBOUR = 1 / 6
_RULE_OF_THREE = 3.0
_WEIGHTS = {AT_CLEAN: 2.0, AT_ROBUST: 1.0, SILENT: 1.0}


@dataclass(frozen=True)
class OperatingPoint:
    """Counts of clean and attacked frames in bins of a pair's score and of the clean path's confidence.

    Attributes:
        score: its name in `SCORES`.
        temperatures: what the logits of the clean and of the robust path are divided by.
        score_edges, confidence_edges: the inner edges of the bins, ascending; a value on an edge is in the upper bin.
        clean: clean frames.
        attacked: attacked frames by kind, some of `KINDS`.

    **Smoothing.** A sixth of each count is given to either neighbour along each axis, and one frame is spread evenly
    over all bins. Without the neighbours the ratios of some hundred frames fit their noise: on digits the mean of the
    likelihood ratio over clean frames held out, which a true one has at 1, was 3 to 8 in 16 x 8 bins, and is 1.0 to 1.5
    with them. A log-likelihood ratio is at most log(n/3) for n clean frames, at least -log(n/3) for n attacked ones (an
    event that n frames never showed has, at 95%, a probability of up to 3/n), and within `MOST_LLR` anyway. Bounded
    ratios are also what is best if some frames are drawn from elsewhere (Huber 1965, Annals of Mathematical Statistics
    36).

    **Two sides.** The alternative is a mixture of the kinds, half of it those aimed at the clean path, which serves.
    One of them is silent: frames on which the paths agree more, and the clean one is surer, than on clean frames. Where
    there are no silent frames, the quarter of the bins with the lowest scores and the quarter with the highest
    confidences stand for them where they meet.
    """

    score: str
    temperatures: tuple[float, float]
    score_edges: tuple[float, ...]
    confidence_edges: tuple[float, ...]
    clean: Counts
    attacked: Mapping[str, Counts]

    @classmethod
    def fit(
        cls,
        score: str,
        *,
        clean: Pair,
        attacked: Mapping[str, Pair],
        temperatures: tuple[float, float] = (1.0, 1.0),
        bins: tuple[int, int] = BINS,
    ) -> OperatingPoint:
        """Count frames in ``bins``; the edges are quantiles of clean and attacked frames, each of half the weight.

        Raises:
            InputError: An unknown score or kind, no attacked frames, fewer than `LEAST_FRAMES` of some, or logits that
                do not go together.
        """
        if score not in SCORES:
            raise InputError(f"unknown score {shortened(score)!a}; choose out of {', '.join(SCORES)}")
        if not attacked or set(attacked) - set(KINDS):
            raise InputError(f"expected attacked frames of the kinds {', '.join(KINDS)}, got {list(attacked)!r:.100}")
        empty = cls(score, temperatures, (), (), ((0,),), MappingProxyType({}))
        sides = [empty.values(*clean), *(empty.values(*attacked[kind]) for kind in attacked)]
        for name, (values, _) in zip(("clean", *attacked), sides, strict=True):
            if len(values) < LEAST_FRAMES:
                raise InputError(f"expected {LEAST_FRAMES} or more {name} frames, got {len(values)}; give more of them")
        weights = [0.5 / len(sides[0][0]), *(0.5 / len(attacked) / len(values) for values, _ in sides[1:])]
        score_edges, confidence_edges = (
            _quantile_edges([side[axis] for side in sides], weights, count) for axis, count in enumerate(bins)
        )
        shaped = replace(empty, score_edges=score_edges, confidence_edges=confidence_edges)
        return replace(
            shaped,
            clean=shaped.count(*clean),
            attacked=MappingProxyType({kind: shaped.count(*attacked[kind]) for kind in KINDS if kind in attacked}),
        )

    def values(self, clean: Logits, robust: Logits) -> tuple[Values, Values]:
        """Return score and confidence of each frame, (N,) each, from the logits of both paths."""
        if np.shape(clean) != np.shape(robust):
            raise InputError(
                f"expected logits of both paths on the same frames, got {np.shape(clean)} and {np.shape(robust)}"
            )
        first, second = at_temperature(clean, self.temperatures[0]), at_temperature(robust, self.temperatures[1])
        return SCORES[self.score](first, second), confidence(first)

    def bins_of(self, scores: Values, confidences: Values) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the bin of each frame by score and by confidence, (N,) each."""
        rows = np.searchsorted(np.asarray(self.score_edges), scores, side="right")
        return rows, np.searchsorted(np.asarray(self.confidence_edges), confidences, side="right")

    def count(self, clean: Logits, robust: Logits) -> Counts:
        """Return how many of the frames fall into each bin."""
        counts = np.zeros(self.shape, dtype=np.int64)
        np.add.at(counts, self.bins_of(*self.values(clean, robust)), 1)
        return tuple(tuple(int(count) for count in row) for row in counts)

    def llrs(self, clean: Logits, robust: Logits) -> Values:
        """Return log(P(bin | attacked) / P(bin | clean)) of each frame, (N,), in nats."""
        return self.judged(clean, robust)[2]

    def judged(self, clean: Logits, robust: Logits) -> tuple[Values, Values, Values]:
        """Return score, confidence and log-likelihood ratio of each frame, (N,) each."""
        scores, confidences = self.values(clean, robust)
        ratios = np.asarray(self.table[self.bins_of(scores, confidences)], dtype=np.float64)
        return scores, confidences, ratios

    def with_clean(self, clean: Counts) -> OperatingPoint:
        """Return this operating point for other clean frames, in the same bins; InputError for fewer than needed."""
        total = sum(map(sum, clean))
        if total < LEAST_FRAMES:
            raise InputError(f"expected {LEAST_FRAMES} or more clean frames, got {total}; give more of them")
        if (len(clean), *{len(row) for row in clean}) != self.shape:
            raise InputError(f"expected counts in {self.shape[0]} x {self.shape[1]} bins, got others; calibrate again")
        return replace(self, clean=clean)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of bins by score and by confidence."""
        return len(self.score_edges) + 1, len(self.confidence_edges) + 1

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """The log-likelihood ratio of each bin in nats, a whole number of steps of 1/32."""
        return self._steps / STEPS_PER_NAT

    @cached_property
    def _steps(self) -> NDArray[np.int64]:
        kinds = {kind: self._probabilities(kind) for kind in self.attacked}
        kinds.setdefault(SILENT, _silent_prior(self.shape))
        mixture = np.average(list(kinds.values()), axis=0, weights=[_WEIGHTS[kind] for kind in kinds])
        ratios = np.log(mixture / self._probabilities(None))
        attacked = min(sum(map(sum, counts)) for counts in self.attacked.values())
        low, high = -_bound(attacked), _bound(sum(map(sum, self.clean)))
        return np.asarray(np.rint(np.clip(ratios, low, high) * STEPS_PER_NAT), dtype=np.int64)

    def _probabilities(self, kind: str | None, share: float = 1.0) -> NDArray[np.float64]:
        """Return the probability of each bin: of clean frames (None), or if a ``share`` of them is attacked."""
        clean = _smoothed(self.clean)
        return clean if kind is None else share * _smoothed(self.attacked[kind]) + (1 - share) * clean

    def threshold(self, frames: float) -> float:
        """Return the least threshold in nats with a mean of at least ``frames`` shadow frames between false alarms.

        It holds for frames that are drawn independently as the clean ones were: see `threshold_for`.

        Raises:
            InputError: ``frames`` is not in [1, 1e10], or no threshold is high enough.
        """
        if not 1 <= frames <= LONGEST:
            raise InputError(f"expected 1 to {LONGEST:g} shadow frames between false alarms, got {frames:g}")
        found = threshold_for(self._steps, self._probabilities(None), frames=frames)
        if found is None:
            raise InputError(f"no threshold keeps false alarms {frames:g} shadow frames apart; calibrate again")
        return found / STEPS_PER_NAT

    def frames_to_alarm(self, threshold: float, kind: str | None = None, *, share: float = 1.0) -> float:
        """Return the expected shadow frames from S = 0 to the alarm; infinite where it takes more than 1e10.

        Args:
            threshold: In nats, as `threshold` returns it.
            kind: Of the attacked frames; None for clean frames, which give the time between false alarms.
            share: The fraction of the frames that is attacked, in [0, 1]; the others are clean.
        """
        steps = max(1, math.ceil(threshold * STEPS_PER_NAT))
        return run_length(self._steps, self._probabilities(kind, share), threshold=steps)

    def record(self) -> dict[str, Any]:
        """Return it as plain values, which `read_operating_point` reads."""
        return {
            "score": self.score,
            "temperatures": list(self.temperatures),
            "score_edges": list(self.score_edges),
            "confidence_edges": list(self.confidence_edges),
            "clean": [list(row) for row in self.clean],
            "attacked": {kind: [list(row) for row in counts] for kind, counts in self.attacked.items()},
        }


def shadow_frames_between(*, rate_hz: float, every: int, false_alarms_per_day: float) -> float:
    """Return the mean number of shadow frames between false alarms, of which one in ``every`` frames is one."""
    return rate_hz * 86_400 / every / false_alarms_per_day


def read_operating_point(reader: Reader) -> OperatingPoint:
    """Return what `OperatingPoint.record` wrote; the reader's error for anything that it cannot have written."""
    reader.exactly("score", "temperatures", "score_edges", "confidence_edges", "clean", "attacked")
    score = reader.choice("score", list(SCORES))
    temperatures = reader.positives("temperatures")
    if len(temperatures) != 2 or not all(1e-3 <= one <= 1e3 for one in temperatures):
        raise reader.wrong("temperatures", "two numbers from 0.001 to 1000")
    score_edges, confidence_edges = _read_edges(reader, "score_edges"), _read_edges(reader, "confidence_edges")
    shape = len(score_edges) + 1, len(confidence_edges) + 1
    attacked = reader.object("attacked")
    attacked.only(*KINDS)
    if not attacked.keys:
        raise reader.wrong("attacked", f"counts of some of {', '.join(KINDS)}")
    return OperatingPoint(
        score,
        (temperatures[0], temperatures[1]),
        score_edges,
        confidence_edges,
        read_counts(reader, "clean", shape),
        MappingProxyType({kind: read_counts(attacked, kind, shape) for kind in KINDS if kind in attacked.keys}),
    )


def read_counts(reader: Reader, key: str, shape: tuple[int, int]) -> Counts:
    """Return the counts under ``key``, rows of bins, of at least `LEAST_FRAMES` frames together."""
    rows = reader.value(key)
    expected = f"{shape[0]} rows of {shape[1]} counts up to {MOST_COUNT}, {LEAST_FRAMES} frames or more together,"
    if not isinstance(rows, list) or len(rows) != shape[0]:
        raise reader.wrong(key, expected)
    for row in rows:
        if not isinstance(row, list) or len(row) != shape[1] or not all(map(_is_count, row)):
            raise reader.wrong(key, expected)
    if sum(map(sum, rows)) < LEAST_FRAMES:
        raise reader.wrong(key, expected)
    return tuple(map(tuple, rows))


def _read_edges(reader: Reader, key: str) -> tuple[float, ...]:
    values = reader.value(key)
    numbers = isinstance(values, list) and len(values) < MOST_BINS and all(map(_is_edge, values))
    if not numbers or any(low >= high for low, high in pairwise(values)):
        raise reader.wrong(key, f"up to {MOST_BINS - 1} numbers, ascending, from -1000 to 1000")
    return tuple(map(float, values))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_COUNT


def _is_edge(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1000 <= value <= 1000


def _quantile_edges(samples: Sequence[Values], weights: Sequence[float], bins: int) -> tuple[float, ...]:
    """Return the inner edges of ``bins`` bins of equal weight; fewer where many values are the same."""
    values = np.concatenate(samples)
    order = np.argsort(values, kind="stable")
    each = np.concatenate([np.full(len(one), weight) for one, weight in zip(samples, weights, strict=True)])
    below = np.cumsum(each[order]) / each.sum()
    wanted = np.arange(1, bins) / bins
    edges = np.unique(values[order][np.minimum(np.searchsorted(below, wanted), len(values) - 1)])
    return tuple(float(edge) for edge in edges if edge > values.min())  # nothing is below the least of them


def _smoothed(counts: Counts) -> NDArray[np.float64]:
    """Return the probability of each bin: see `OperatingPoint`."""
    array = np.asarray(counts, dtype=np.float64)
    total = array.sum() + _PSEUDO_FRAMES
    for axis in (0, 1):
        given = _TO_NEIGHBOUR * array
        back = np.moveaxis(array - 2 * given, axis, 0)
        given = np.moveaxis(given, axis, 0)
        back[1:] += given[:-1]
        back[:-1] += given[1:]
        back[0] += given[0]  # what would leave the grid stays
        back[-1] += given[-1]
        array = np.moveaxis(back, 0, axis)
    return np.asarray((array + _PSEUDO_FRAMES / array.size) / total, dtype=np.float64)


def _silent_prior(shape: tuple[int, int]) -> NDArray[np.float64]:
    where = np.zeros(shape)
    where[: math.ceil(shape[0] / 4), -math.ceil(shape[1] / 4) :] = 1.0
    return np.asarray(where / where.sum(), dtype=np.float64)


def _bound(frames: int) -> float:
    """Return the largest log-likelihood ratio, in nats, that ``frames`` frames allow."""
    return min(MOST_LLR, math.log(frames / _RULE_OF_THREE))
