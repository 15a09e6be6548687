"""What the tripwire notices of each kind of attacker, and what is lost before and after its alarm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smart_eval.corruptions import CORRUPTIONS
from smart_eval.measure import chunk_seed, exactly
from smart_eval.tripwire.pair import ADAPTIVE, AIMED, KINDS, AttackedPair
from smart_eval.tripwire.streams import STREAMS, Alarms, alarms, auc, false_alarms, roc
from smart_runtime.tripwire.operating_point import AT_CLEAN, AT_ROBUST, OperatingPoint, Pair, shadow_frames_between
from smart_runtime.tripwire.operating_point import SILENT as SILENT_SAMPLES
from smart_runtime.tripwire.pair_scores import SCORES, Values, at_temperature
from smart_runtime.tripwire.records import DEFAULT_SCORE
from smart_train.accuracy import tensors, to_tensor
from smart_train.checkpoint.format import Samples
from smart_train.data.images import Labels, Split

EVERY = (10, 30)
SHARES = (1.0, 0.5, 0.2, 0.05)
RATE_HZ, FALSE_ALARMS_PER_DAY = 30.0, 1.0
LLR = "log-likelihood ratio"
FITTED, OWN = "fitted on the checkpoint's samples", "the bundle's"
"""Where operating points are from."""

_DRIFT_SEVERITY = 3
_STREAM, _CLEAN_STREAMS = 10_000, 3

WHAT_IT_CANNOT = (
    "Tripwire: an attacker who fools both paths alike is not seen, so it protects as far as the robust path does and "
    "no further; streams are drawn from independent frames."
)


@dataclass(frozen=True, eq=False)
class Kind:
    """What one kind of attacker makes of the images.

    Attributes:
        name: of `KINDS`, ``clean`` or a corruption.
        pair: the logits of both paths.
        llrs: of each frame, (N,), in nats.
        labels: of the images.
    """

    name: str
    pair: Pair
    llrs: Values
    labels: Labels

    def wrong(self, path: int) -> float:
        """Return the share of frames that the clean path (0) or the robust one (1) gets wrong."""
        return float((self.pair[path].argmax(axis=1) != self.labels).mean())

    @property
    def unseen(self) -> float:
        """Return the share of frames that the clean path gets wrong and that bring the alarm no nearer."""
        return float(((self.llrs <= 0) & (self.pair[0].argmax(axis=1) != self.labels)).mean())

    def scores(self, point: OperatingPoint) -> dict[str, Values]:
        """Return each candidate score of each frame, and the log-likelihood ratio."""
        clean, robust = (at_temperature(one, t) for one, t in zip(self.pair, point.temperatures, strict=True))
        return {**{name: score(clean, robust) for name, score in SCORES.items()}, LLR: self.llrs}


@dataclass(frozen=True, eq=False)
class TripwireFound:
    """What a tripwire notices of a pair's attackers.

    Attributes:
        points: what it would decide by with each score, from samples of which no frame here is one; it has the first.
        whose: where the points are from, `FITTED` or `OWN`.
        eps: the attackers' radius in pixel units.
        clean: the clean frames.
        attacked: by kind.
        drift: by corruption, at severity 3.
        steps: of each attack.
        seed: of attacks and streams.
    """

    points: Mapping[str, OperatingPoint]
    whose: str
    eps: float
    clean: Kind
    attacked: Mapping[str, Kind]
    drift: Mapping[str, Kind]
    steps: int
    seed: int

    @property
    def point(self) -> OperatingPoint:
        """What the tripwire decides by."""
        return next(iter(self.points.values()))

    @cache  # noqa: B019  # as long as the process, which measures few
    def threshold(self, every: int, score: str | None = None) -> float:
        """Return the threshold in nats for one false alarm a day at 30 frames/s."""
        return self.points[score or self.point.score].threshold(
            shadow_frames_between(rate_hz=RATE_HZ, every=every, false_alarms_per_day=FALSE_ALARMS_PER_DAY)
        )

    @cache  # noqa: B019  # as above
    def alarms(self, kind: Kind, *, every: int, share: float = 1.0) -> Alarms:
        """Return when the alarm comes in streams of which ``share`` is of a ``kind`` and the rest clean."""
        threshold = self.threshold(every)
        return alarms(self.clean.llrs, kind.llrs, share=share, threshold=threshold, every=every, seed=self.seed)

    def by_score(self, score: str) -> dict[str, Any]:
        """Return what the tripwire would be with another score; adaptive attackers know the one that it has."""
        point, every = self.points[score], EVERY[0]
        clean = point.llrs(*self.clean.pair)
        found: dict[str, Any] = {}
        for name, kind in self.attacked.items():
            llrs = point.llrs(*kind.pair)
            alarm = alarms(clean, llrs, share=1.0, threshold=self.threshold(every, score), every=every, seed=self.seed)
            found[name] = {"auc": self.auc(name)[score], "frames_to_alarm": alarm.median}
        return found

    def false_alarms(self, every: int) -> int:
        """Return the false alarms in three streams of 10,000 clean frames together."""
        return sum(
            false_alarms(
                self.clean.llrs, frames=_STREAM, threshold=self.threshold(every), every=every, seed=self.seed + number
            )
            for number in range(_CLEAN_STREAMS)
        )

    def auc(self, name: str) -> dict[str, float]:
        """Return the area under the ROC curve of each score for one kind of attacker."""
        clean, attacked = self.clean.scores(self.point), self.attacked[name].scores(self.point)
        return {score: auc(attacked[score], clean[score]) for score in clean}

    def sentence(self) -> str:
        """Return the figure that a reader should keep, the adaptive attacker's beside the other's."""
        aimed, adaptive = next(iter(AIMED)), self.attacked[ADAPTIVE]
        every = EVERY[0]
        first, second = (self.alarms(self.attacked[name], every=every).median for name in (aimed, ADAPTIVE))
        return (
            f"AUC {self.auc(aimed)[self.point.score]:.3f} against an attacker who aims at the clean path "
            f"({_frames(first)}), {self.auc(ADAPTIVE)[self.point.score]:.3f} against one who knows the tripwire "
            f"({_frames(second)}), who gets {adaptive.wrong(0):.0%} of the frames wrong before the alarm and "
            f"{adaptive.wrong(1):.0%} after it, and {adaptive.unseen:.0%} without ever an alarm by leaving alone what "
            f"would show; the robust path alone is wrong on {self.attacked['aimed-at-robust'].wrong(1):.0%} of the "
            "frames aimed at it"
        )

    def record(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "policy": "tripwire",
            "cannot": WHAT_IT_CANNOT,
            "score": self.point.score,
            "operating_points": self.whose,
            "eps": self.eps,
            "steps": self.steps,
            "rate_hz": RATE_HZ,
            "false_alarms_per_day": FALSE_ALARMS_PER_DAY,
            "streams": STREAMS,
            "examples": len(self.clean.labels),
            "sentence": self.sentence(),
            "every": {
                str(every): {
                    "threshold": self.threshold(every),
                    "false_alarms_in_30000_clean_frames": self.false_alarms(every),
                }
                for every in EVERY
            },
            "scores": {score: self.by_score(score) for score in self.points},
            "clean": {"clean_path_wrong": self.clean.wrong(0), "robust_path_wrong": self.clean.wrong(1)},
            "attacked": {name: self._attacked(name) for name in self.attacked},
            "drift": {
                name: {
                    "severity": _DRIFT_SEVERITY,
                    "clean_path_wrong": kind.wrong(0),
                    "frames_to_alarm": {str(every): _record(self.alarms(kind, every=every)) for every in EVERY},
                }
                for name, kind in self.drift.items()
            },
        }

    def _attacked(self, name: str) -> dict[str, Any]:
        kind = self.attacked[name]
        curve = roc(kind.scores(self.point)[self.point.score], self.clean.scores(self.point)[self.point.score])
        return {
            "clean_path_wrong": kind.wrong(0),
            "robust_path_wrong": kind.wrong(1),
            "unseen_and_wrong": kind.unseen,
            "auc": self.auc(name),
            "roc": [[round(float(x), 4), round(float(y), 4)] for x, y in _thinned(curve)],
            "frames_to_alarm": {
                str(every): {f"{share:g}": _record(self.alarms(kind, every=every, share=share)) for share in SHARES}
                for every in EVERY
            },
        }


def fitted(
    pair: AttackedPair,
    samples: Samples,
    *,
    paths: tuple[str, str],
    device: torch.device | str = "cpu",
) -> dict[str, OperatingPoint]:
    """Return the operating points that a checkpoint's samples give: clean, attacked on each of ``paths``, and silent.

    By score, that of the policy first.
    """
    images = to_tensor(samples.images.to(device))
    attacked = {
        kind: pair.arrays(to_tensor(samples.adversarial[path].to(device)))
        for kind, path in zip((AT_CLEAN, AT_ROBUST), paths, strict=True)
    }
    silent = pair.silent(images, samples.labels.to(device))
    clean, attacked = pair.arrays(images), {**attacked, SILENT_SAMPLES: pair.arrays(silent)}
    scores = [DEFAULT_SCORE, *(name for name in SCORES if name != DEFAULT_SCORE)]
    return {score: OperatingPoint.fit(score, clean=clean, attacked=attacked) for score in scores}


def measure_tripwire(
    pair: AttackedPair,
    split: Split,
    *,
    points: Mapping[str, OperatingPoint],
    whose: str = FITTED,
    chunk: int,
    device: torch.device | str = "cpu",
    done: Callable[[str, int], None] = lambda _, __: None,
) -> TripwireFound:
    """Attack ``split`` in every way and return what the tripwire of the first of ``points`` makes of it.

    Args:
        pair: the two paths, in eval mode and on ``device``, and the attackers' radius.
        split: images that the operating point was not fitted on.
        points: what it would decide by with each score; it has the first one, which adaptive attackers know.
        whose: where they are from, `FITTED` or `OWN`.
        chunk: images that are attacked together.
        device: where the networks are.
        done: called with what was made, and of how many images.
    """
    point = next(iter(points.values()))
    parts = [slice(start, start + chunk) for start in range(0, len(split), chunk)]
    found: dict[str, list[Pair]] = {}
    with exactly():
        for where in parts:
            images, labels = tensors(split, where, device)
            found.setdefault("clean", []).append(pair.arrays(images))
            for kind in KINDS:
                changed = pair.attacked(kind, images, labels, point=point)
                found.setdefault(kind, []).append(pair.arrays(changed))
                done(kind, len(labels))
            for number, corruption in enumerate(CORRUPTIONS):
                seed = chunk_seed(pair.seed, corruption.name, number)
                pixels = corruption(split.images[where], severity=_DRIFT_SEVERITY, seed=seed)
                corrupted = to_tensor(torch.from_numpy(pixels).to(device))
                found.setdefault(corruption.name, []).append(pair.arrays(corrupted))
    kinds = {name: _kind(name, ones, point, split.labels) for name, ones in found.items()}
    return TripwireFound(
        points=points,
        whose=whose,
        eps=pair.eps,
        clean=kinds["clean"],
        attacked={name: kinds[name] for name in KINDS},
        drift={one.name: kinds[one.name] for one in CORRUPTIONS},
        steps=pair.steps,
        seed=pair.seed,
    )


def _kind(name: str, parts: Sequence[Pair], point: OperatingPoint, labels: Labels) -> Kind:
    clean, robust = (np.concatenate(ones) for ones in zip(*parts, strict=True))
    return Kind(name, (clean, robust), point.llrs(clean, robust), labels)


def tables(found: Sequence[tuple[str, TripwireFound]]) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows for people: of each model and kind of attacker, the alarm and what is lost."""
    several = len(found) > 1
    title = (
        f"Tripwire: one false alarm a day at {RATE_HZ:g} frames/s, 1 of {EVERY[0]} frames shadowed, median frames to "
        f"the alarm over {STREAMS} streams"
    )
    columns = [
        *(["model"] if several else []),
        *("attacker", "AUC", "clean path wrong", "wrong and unseen", "robust path wrong"),
        *(f"alarm, {share:.0%} attacked" for share in SHARES),
    ]
    rows = []
    for model, one in found:
        named = {**one.attacked, **{f"{name} (drift)": kind for name, kind in one.drift.items()}}
        for name, kind in named.items():
            scores = kind.scores(one.point)[one.point.score], one.clean.scores(one.point)[one.point.score]
            figures = [f"{auc(*scores):.3f}", f"{kind.wrong(0):.3f}", f"{kind.unseen:.3f}", f"{kind.wrong(1):.3f}"]
            figures += [_cell(one.alarms(kind, every=EVERY[0], share=share).median) for share in SHARES]
            rows.append([*([model] if several else []), name, *figures])
    return title, columns, rows


def _thinned(curve: NDArray[np.float64], most: int = 30) -> NDArray[np.float64]:
    """Return at most so many points of a curve, its ends among them."""
    places = np.unique(np.linspace(0, len(curve) - 1, most).round().astype(int))
    return np.asarray(curve[places])


def _record(found: Alarms) -> dict[str, float | None]:
    return {"median": found.median, "nine_of_ten": found.late}


def _cell(frames: float | None) -> str:
    return "none" if frames is None else f"{frames:.0f}"


def _frames(frames: float | None) -> str:
    return "no alarm" if frames is None else f"alarm after {frames:.0f} frames"
