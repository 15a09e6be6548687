"""The time of day decides."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from smart_runtime.inputs import Images
from smart_runtime.policies.policy import PolicyModel, SwitchRequest, check_choice
from smart_runtime.serving import Result

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


class Schedule:
    """Lets a path answer between two times of day, and ``otherwise`` in between.

        policy = Schedule([("22:00", "06:00", "robust")], otherwise="clean", zone="Europe/Berlin")

    A stretch holds from its first minute to the one before its end, as a clock on the wall there shows them, also over
    midnight; of two that hold at once the first in the list counts. Where the clocks go forward, a time that is left
    out comes with the next that there is; where they go back, an hour happens twice, and so does what is in it. The
    clock is looked at when the model is loaded and after each call, so the first call after a change is the last on the
    old path.
    """

    def __init__(
        self,
        stretches: Sequence[tuple[str, str, str]],
        *,
        otherwise: str,
        zone: str | tzinfo = "UTC",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Decide by the time of day.

        Args:
            stretches: Each with its beginning and end as ``HH:MM``, 00:00 to 23:59, and its path.
            otherwise: Answers outside of all of them.
            zone: A name of the IANA time zone database, or a `tzinfo`.
            clock: Returns the Unix time in seconds.

        Raises:
            ValueError: A time is none, a stretch has no length, there is no stretch, or no such zone here.
        """
        if not stretches:
            raise ValueError('expected stretches such as ("22:00", "06:00", "robust"), got none')
        self._stretches = tuple((_minutes(begin), _minutes(end), path) for begin, end, path in stretches)
        for (begin, end, _), (text, *_) in zip(self._stretches, stretches, strict=True):
            if begin == end:
                raise ValueError(f"expected a stretch with two times, got {text} twice; for a whole day use otherwise")
        self._texts = tuple(f"{begin} to {end}" for begin, end, _ in stretches)
        self._otherwise = otherwise
        self._zone = zone if isinstance(zone, tzinfo) else _zone(zone)
        self._clock = clock

    def start(self, model: PolicyModel) -> None:
        """Switch ``model`` to the path of this time; raises as `check_choice`."""
        for path in (self._otherwise, *(path for *_, path in self._stretches)):
            check_choice(path, model)
        request = self._read()
        model.switch(request.path, request.reason)

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:  # noqa: ARG002  # only the clock counts
        """Return the path of this time, which may be the one that answers already."""
        return self._read()

    def _read(self) -> SwitchRequest:
        now = datetime.fromtimestamp(self._clock(), self._zone)
        minute = now.hour * 60 + now.minute
        for (begin, end, path), text in zip(self._stretches, self._texts, strict=True):
            if begin <= minute < end if begin < end else minute >= begin or minute < end:
                return SwitchRequest(path, f"it is between {text.replace(' to ', ' and ')}")
        return SwitchRequest(self._otherwise, "it is outside of the scheduled times")

    def status(self) -> Mapping[str, Any]:
        """Return the time there and the path that it asks for."""
        now = datetime.fromtimestamp(self._clock(), self._zone)
        return {"time": now.isoformat(timespec="seconds"), "wanted": self._read().path}

    def stop(self) -> None:
        """Nothing to give back."""


def _minutes(text: str) -> int:
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"expected a time as HH:MM from 00:00 to 23:59, got {text!r:.40}")
    return int(match[1]) * 60 + int(match[2])


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
        raise ValueError(
            f"no time zone {name!r:.60} on this machine; check the name, or pip install tzdata where there are none"
        ) from error
