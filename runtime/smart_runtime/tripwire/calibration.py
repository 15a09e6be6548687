"""A file beside a bundle that says how often clean frames of the user's own fall into each bin."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from smart_common.documents import Reader, parse_document, read_limited
from smart_common.files import replacing
from smart_common.version import version
from smart_runtime.errors import InputError
from smart_runtime.tripwire.operating_point import Counts, Pair, read_counts
from smart_runtime.tripwire.pair_scores import SCORES
from smart_runtime.tripwire.records import TripwireRecord

FORMAT_VERSION = 1
SUFFIX = ".tripwire.json"
"""Of the file beside a bundle, after the bundle's own name."""

_MAX_BYTES = 2**20
_DIGEST = 64  # hexadecimal digits


@dataclass(frozen=True)
class Calibration:
    """Counts of clean frames by score, and the digest of the bundle whose bins they are counted in."""

    digest: str
    clean: Mapping[str, Counts]

    @property
    def frames(self) -> int:
        """How many frames were counted."""
        return max(sum(map(sum, counts)) for counts in self.clean.values())


def calibration_of(pair: Pair, *, tripwire: TripwireRecord, digest: str) -> Calibration:
    """Return the counts of clean frames with these logits; InputError for too few of them."""
    points = tripwire.points
    counts = {score: point.with_clean(point.count(*pair)).clean for score, point in points.items()}
    return Calibration(digest, MappingProxyType(counts))


def calibrated(tripwire: TripwireRecord, calibration: Calibration, *, digest: str) -> TripwireRecord:
    """Return ``tripwire`` for the frames of ``calibration``; InputError if that is another bundle's than ``digest``'s.

    A score that it does not have is left out.
    """
    if calibration.digest != digest:
        raise InputError(
            f"the calibration is that of the bundle {calibration.digest[:12]}, and this one is {digest[:12]}; run "
            "smart-run calibrate on this one"
        )
    points = {
        score: point.with_clean(calibration.clean[score])
        for score, point in tripwire.points.items()
        if score in calibration.clean
    }
    if not points:
        raise InputError("the calibration has none of the bundle's scores; run smart-run calibrate again")
    return replace(tripwire, points=MappingProxyType(points))


def write_calibration(file: Path, calibration: Calibration) -> None:
    """Write ``file`` anew; OSError if the system refuses."""
    rows = {score: [list(row) for row in counts] for score, counts in calibration.clean.items()}
    record = {
        "format_version": FORMAT_VERSION,
        "created_by": f"smart-edge {version()}",
        "bundle": calibration.digest,
        "clean": rows,
    }
    with replacing(file) as out:
        out.write((json.dumps(record) + "\n").encode())


def read_calibration(file: str | os.PathLike[str]) -> Calibration:
    """Return what `write_calibration` wrote.

    Raises:
        InputError: There is no such file, or it is something else.
    """
    data = read_limited(Path(file), what="calibration of the tripwire", max_bytes=_MAX_BYTES, error=InputError)
    return _parse(parse_document(data, damaged=_damaged))


def is_calibration(file: Path) -> bool:
    """Whether ``file`` is one that `write_calibration` wrote."""
    try:
        read_calibration(file)
    except (InputError, OSError):
        return False
    return True


def _parse(reader: Reader) -> Calibration:
    reader.exactly("format_version", "created_by", "bundle", "clean")
    reader.integer("format_version", low=1, high=FORMAT_VERSION)
    reader.string("created_by")
    digest = reader.string("bundle")
    if len(digest) != _DIGEST or set(digest) - set("0123456789abcdef"):
        raise reader.wrong("bundle", f"a digest of {_DIGEST} hexadecimal digits")
    clean = reader.object("clean")
    clean.only(*SCORES)
    if not clean.keys:
        raise clean.unlike(f"some of {', '.join(SCORES)}")
    return Calibration(digest, MappingProxyType({score: _counts(clean, score) for score in clean.keys}))


def _counts(clean: Reader, score: str) -> Counts:
    rows: Any = clean.value(score)
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], list):
        raise clean.wrong(score, "rows of counts")
    return read_counts(clean, score, (len(rows), len(rows[0])))


def _damaged(what: str) -> InputError:
    return InputError(f"this is no calibration of the tripwire: {what}; run smart-run calibrate again")
