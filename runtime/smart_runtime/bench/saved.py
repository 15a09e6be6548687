"""Read a result that ``smart-bench --json`` printed; the file may come from anyone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from smart_common.documents import Reader, parse_document, read_limited
from smart_runtime.errors import InputError

MAX_BYTES = 16 * 1024 * 1024
"""No result is larger: one of ten graphs in a thousand blocks is below 1 MB."""

Medians = npt.NDArray[np.float64]
"""The median latency of each block in ms, (rounds,)."""


@dataclass(frozen=True, kw_only=True)
class SavedRow:
    """One graph of a saved result; the speed-up, with its 95% interval, is against the result's reference."""

    name: str
    bundle: str | None
    macs: int | None
    speedup: float
    speedup_low: float
    speedup_high: float
    block_medians_ms: Medians = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A saved result: ``file`` as the user wrote it, the rows, the one that speed-ups are against.

    ``bundles`` says of each bundle, by path and in order, what tells it from another one; ``conditions`` what all was
    measured on and with. Both are in the order to show them, and every value is a word for people.
    """

    file: str
    bundles: Mapping[str, Mapping[str, str]]
    rows: tuple[SavedRow, ...]
    reference: SavedRow
    conditions: Mapping[str, str]


def read_saved(path: Path) -> Saved:
    """Return the result in the file ``path``.

    Raises:
        InputError: No such file, larger than `MAX_BYTES`, no result of smart-bench, a damaged one, one of a version
            that kept no medians of blocks, or one without speed-ups.
    """
    name = str(path)

    def damaged(what: str) -> InputError:
        return InputError(f"{name!r} is no result of smart-bench --json or damaged: {what}; measure again")

    data = read_limited(path, what="result of smart-bench --json", max_bytes=MAX_BYTES, error=InputError)
    root = parse_document(data, damaged=damaged)
    entries = root.objects("rows")
    if not entries:
        raise root.wrong("rows", "the rows of a comparison")
    if not all("block_medians_ms" in entry.raw for entry in entries):
        raise InputError(
            f"{name!r} has no medians of blocks: it is a result of an older smart-bench; measure again with this one"
        )
    if "reference" in root.raw and root.value("reference") is None:
        raise InputError(
            f"{name!r} has no speed-ups: it is a comparison without a dense graph; measure with --baseline, or export "
            "with one"
        )
    bundles = {
        entry.string("bundle"): MappingProxyType({key: entry.string(key) for key in ("digest", "precision")})
        for entry in root.objects("bundles")
    }
    rows = tuple(_row(entry, bundles) for entry in entries)
    against = root.object("reference")
    reference = [row for row in rows if (row.bundle, row.name) == (against.value("bundle"), against.value("name"))]
    if len({len(row.block_medians_ms) for row in rows}) != 1 or len(rows[0].block_medians_ms) < 2:
        raise damaged("expected as many block_medians_ms in every row, 2 or more, got other numbers")
    if len({(row.bundle, row.name) for row in rows}) != len(rows) or len(bundles) != len(root.objects("bundles")):
        raise damaged("expected every bundle and every row once, got one twice")
    if not reference:
        raise root.wrong("reference", "one of the rows")
    return Saved(
        file=name,
        bundles=MappingProxyType(bundles),
        rows=rows,
        reference=reference[0],
        conditions=_conditions(root, reference[0]),
    )


def _row(entry: Reader, bundles: Mapping[str, object]) -> SavedRow:
    bundle = entry.optional_string("bundle")
    if bundle is not None and bundle not in bundles:
        raise entry.wrong("bundle", "one of the bundles")
    row = SavedRow(
        name=entry.string("name"),
        bundle=bundle,
        macs=entry.optional_integer("macs", low=0),
        speedup=entry.positive("speedup"),
        speedup_low=entry.positive("speedup_low"),
        speedup_high=entry.positive("speedup_high"),
        block_medians_ms=np.array(entry.positives("block_medians_ms"), dtype=np.float64),
    )
    if row.speedup_low > row.speedup_high:
        raise entry.wrong("speedup_low", "the lower end of the interval")
    # A nanosecond to a day: no ratio of two of them is too large for a float.
    if row.block_medians_ms.size and not 1e-6 <= row.block_medians_ms.min() <= row.block_medians_ms.max() <= 86.4e6:
        raise entry.wrong("block_medians_ms", "latencies in ms")
    return row


def _conditions(root: Reader, reference: SavedRow) -> Mapping[str, str]:
    environment = root.object("environment")
    baseline = root.object_or_none("baseline")
    return MappingProxyType(
        {
            "CPU": environment.string("cpu"),
            "machine": environment.string("machine"),
            "usable cores": str(environment.integer("usable_cores", low=1)),
            "governor": environment.optional_string("governor") or "unknown",
            "power mode": environment.optional_string("power_mode") or "unknown",
            "GPU": environment.optional_string("gpu") or "none",
            "GPU's driver": environment.optional_string("gpu_driver") or "none",
            "engine": root.string("engine"),
            "engine's library": environment.optional_string("library") or "unknown",
            "batch": str(root.integer("batch", low=1)),
            "threads": str(root.integer("threads", low=1)),
            "baseline's SHA-256": "none" if baseline is None else baseline.string("sha256"),
            "reference's MACs": "unknown" if reference.macs is None else str(reference.macs),
            **{f"{package} version": found for package, found in environment.object("versions").texts().items()},
        }
    )
