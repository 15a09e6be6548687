"""What an operating point promises: frames to the alarm, by kind of attack, at one rate of false alarms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from smart_runtime.tripwire.operating_point import AT_CLEAN, AT_ROBUST, SILENT, shadow_frames_between
from smart_runtime.tripwire.records import TripwireRecord

LATE_FRAMES = 500
"""Frames to the alarm above which the tripwire counts as late: 17 seconds at 30 frames a second."""

BLIND_FRAMES = 100_000
"""Frames above which it counts as blind: an hour at 30 frames a second."""

EVERY, RATE_HZ, FALSE_ALARMS_PER_DAY = 10, 30.0, 1.0

_WORDS = {AT_CLEAN: "attacks aimed at the clean path", AT_ROBUST: "attacks aimed at the robust path"}


@dataclass(frozen=True)
class Outlook:
    """Expected frames of the stream to the alarm, by kind of attack on every frame; infinite for none in 10^10."""

    score: str
    threshold: float
    frames: dict[str, float]
    clean_frames: int
    attacked_frames: int

    @property
    def assumption(self) -> str:
        """What the numbers rest on, in words."""
        return (
            f"tripwire by {self.score}: {FALSE_ALARMS_PER_DAY:g} false alarm a day assumed, one of {EVERY} frames at "
            f"{RATE_HZ:g} a second in the shadow, independent frames like the {self.clean_frames} clean and "
            f"{self.attacked_frames} attacked ones that were counted"
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """The assumption, and a line with the expected frames for each kind."""
        return (self.assumption, *(f"  {kind}: {_said(count)}" for kind, count in self.frames.items()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each kind of attack that it sees late or not at all."""
        found = []
        for kind, count in self.frames.items():
            what = _WORDS.get(kind, "silent attacks, to which both paths fall alike")
            if count > BLIND_FRAMES:
                found.append(f"the tripwire is blind to {what}; a more robust path of the bundle is the remedy")
            elif count > LATE_FRAMES:
                found.append(
                    f"the tripwire is late for {what}, {_said(count)}; a more robust path or more false alarms make it "
                    "earlier"
                )
        return tuple(found)

    def record(self) -> dict[str, Any]:
        """Return it as plain values; None for endless."""
        return {
            "score": self.score,
            "every": EVERY,
            "rate_hz": RATE_HZ,
            "false_alarms_per_day": FALSE_ALARMS_PER_DAY,
            "assumes": "independent frames",
            "threshold": self.threshold,
            "frames_to_alarm": {kind: None if math.isinf(count) else count for kind, count in self.frames.items()},
        }


def outlook_of(tripwire: TripwireRecord) -> Outlook:
    """Return what to expect of the default score at one false alarm a day."""
    point = tripwire.point(None)
    between = shadow_frames_between(rate_hz=RATE_HZ, every=EVERY, false_alarms_per_day=FALSE_ALARMS_PER_DAY)
    threshold = point.threshold(between)
    kinds = [kind for kind in (AT_CLEAN, AT_ROBUST, SILENT) if kind in point.attacked]
    return Outlook(
        point.score,
        threshold,
        {kind: EVERY * point.frames_to_alarm(threshold, kind) for kind in kinds},
        sum(map(sum, point.clean)),
        sum(sum(map(sum, counts)) for counts in point.attacked.values()),
    )


def _said(count: float) -> str:
    return "no alarm" if math.isinf(count) else f"{count:,.0f} frames to the alarm, all of them attacked"
