"""What a manifest says for the tripwire, under ``tripwire``: which two paths, and an operating point for each score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from smart_common.documents import Reader
from smart_common.roles import clean_and_attacked
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.errors import BundleError, InputError
from smart_runtime.tripwire.operating_point import OperatingPoint, read_operating_point
from smart_runtime.tripwire.pair_scores import SCORES

DEFAULT_SCORE = "margin"
"""On digits no other has a higher AUC against attackers who fool both paths alike: docs/policies.md."""


@dataclass(frozen=True)
class TripwireRecord:
    """The names of the paths for clean and for attacked images, and by score's name their operating points."""

    clean: str
    robust: str
    points: Mapping[str, OperatingPoint]

    def record(self) -> dict[str, Any]:
        """Return it as plain values, for the manifest."""
        points = {score: point.record() for score, point in self.points.items()}
        return {"clean": self.clean, "robust": self.robust, "points": points}

    def point(self, score: str | None) -> OperatingPoint:
        """Return the operating point for ``score``, by default for `DEFAULT_SCORE`, else the first one.

        Raises:
            InputError: There is none for that score.
        """
        if score is None:
            score = DEFAULT_SCORE if DEFAULT_SCORE in self.points else next(iter(self.points))
        if score not in self.points:
            raise InputError(f"no operating point for the score {score!r:.40}; there are {', '.join(self.points)}")
        return self.points[score]


def read_tripwire(manifest: Manifest) -> TripwireRecord | None:
    """Return what the manifest has for the tripwire, None where it has nothing.

    Raises:
        BundleError: What it has is damaged, or of other paths than those for clean and for attacked images.
    """
    if manifest.tripwire is None:
        return None
    reader = Reader(dict(manifest.tripwire), where="tripwire", damaged=_damaged)
    pair = _pair_of(manifest)
    if pair is None:
        raise reader.unlike("a path for clean and one for attacked images beside it")
    reader.choice("clean", [pair[0]])
    reader.choice("robust", [pair[1]])
    points = reader.object("points")
    points.only(*SCORES)
    if not points.keys:
        raise points.unlike(f"some of {', '.join(SCORES)}")
    found = {score: read_operating_point(points.object(score)) for score in points.keys}
    for score, point in found.items():
        if point.score != score:
            raise points.object(score).wrong("score", f"{score!r}")
    return TripwireRecord(*pair, MappingProxyType(found))


def require_tripwire(manifest: Manifest) -> TripwireRecord:
    """Return what `read_tripwire` does; BundleError where there is nothing."""
    if _pair_of(manifest) is None:
        raise BundleError(
            "the tripwire compares a path for clean images with one for attacked ones, and the bundle has no such "
            "pair; export a checkpoint that has both"
        )
    found = read_tripwire(manifest)
    if found is None:
        raise BundleError(
            "the bundle has no operating points, by which the tripwire tells clean frames from attacked ones; export "
            "it again with this smart-edge"
        )
    return found


def _pair_of(manifest: Manifest) -> tuple[str, str] | None:
    return clean_and_attacked({name: path.role for name, path in manifest.paths.items() if path.role is not None})


def _damaged(what: str) -> BundleError:
    return BundleError(f"the manifest is damaged: {what}; export the bundle again")
