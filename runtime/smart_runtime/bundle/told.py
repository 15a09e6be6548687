"""What a manifest says of mixes and calibration, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smart_runtime.bundle.manifest import Manifest


def dial_lines(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for each path that is calibrated, and for each mix."""
    for name, graph in manifest.paths.items():
        if graph.calibration is not None:
            yield graph.calibration.sentence(name)
    for mix in manifest.mixes.values():
        yield f"{mix.name}: {1 - mix.share:.0%} {mix.paths[0]} and {mix.share:.0%} {mix.paths[1]}; a call runs both"


def dial_record(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """Return the same as plain values."""
    return {
        "calibration": {
            name: graph.calibration.record() for name, graph in manifest.paths.items() if graph.calibration is not None
        },
        "mixes": {
            mix.name: {"paths": list(mix.paths), "share": mix.share, "temperatures": list(mix.temperatures)}
            for mix in manifest.mixes.values()
        },
    }
