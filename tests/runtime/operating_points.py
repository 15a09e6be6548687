"""An operating point that tests know by heart, and bundles with it whose engines agree or not as a picture asks."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundles import CLASSES, HEIGHT, WIDTH, add_mix, write_bundle
from smart_runtime.engines import Batch, Engine, Scores
from smart_runtime.tripwire.operating_point import AT_CLEAN, AT_ROBUST, OperatingPoint, Pair
from smart_runtime.tripwire.pair_scores import SCORES
from smart_runtime.tripwire.records import TripwireRecord

QUIET, LOUD = 0.1, 0.9
"""The brightness of a picture on which the paths agree, and of one on which they do not."""


def frames(level: float, *, count: int = 1) -> npt.NDArray[np.float32]:
    return np.full((count, 3, HEIGHT, WIDTH), level, np.float32)


def logits(label: int, *, count: int, height: float = 6.0) -> npt.NDArray[np.float32]:
    found = np.zeros((count, CLASSES), np.float32)
    found[:, label] = height
    return found


def pair(*, apart: int, together: int) -> Pair:
    """Frames on which the paths of `Agreeing` disagree, then frames on which they agree."""
    count = apart + together
    robust = np.concatenate([logits(0, count=apart), logits(1, count=together)])
    return logits(1, count=count), robust


def tripwire() -> TripwireRecord:
    clean, attacked = pair(apart=2, together=254), pair(apart=250, together=6)
    points = {
        score: OperatingPoint.fit(score, clean=clean, attacked={AT_CLEAN: attacked, AT_ROBUST: attacked})
        for score in SCORES
    }
    return TripwireRecord("clean", "robust", MappingProxyType(points))


def write_watched_bundle(directory: Path, *, mixed: bool = False, **changes: Any) -> Path:
    """Write a bundle with operating points, and a mix if ``mixed``; ``changes`` go into the record of the points."""

    def add(document: dict[str, Any]) -> None:
        if mixed:
            add_mix(document)
        document["additional_metadata"]["smart_edge"]["tripwire"] = {**tripwire().record(), **changes}

    return write_bundle(directory, change=add)


class Agreeing(Engine):
    """Sees class 1 in every picture; as the robust path class 0 in a bright one."""

    def __init__(self, path: str) -> None:
        self.robust = path == "robust"

    @classmethod
    def create(cls, *_: object, **__: object) -> Engine:
        raise AssertionError("a model under test is given its engines")

    def run(self, batch: Batch) -> Scores:
        bright = batch.mean(axis=(1, 2, 3)) > 0.5
        found: Scores = np.where((bright & self.robust)[:, None], logits(0, count=1), logits(1, count=1))
        return found

    def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {"engine": "a test's"}
