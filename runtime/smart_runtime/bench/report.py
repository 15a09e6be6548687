"""The result of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from smart_devices.clocks import Clock
from smart_devices.engine_rows import engine_info
from smart_runtime.bench.contenders import Baseline
from smart_runtime.bench.energy import Sensing
from smart_runtime.bench.environment import Environment
from smart_runtime.bench.measure import Block, agrees
from smart_runtime.bench.switching import SwitchTimes
from smart_runtime.bundle.accuracies import accuracies
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.notes import notes_on

MEASURED = "engine.run on prepared float32 input"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One graph's figures; speed-ups and ``mac_ratio`` are against the report's reference row, None without one.

    ``bundle`` is the bundle's path as the user wrote it. It, ``precision``, ``macs`` and ``parameters`` are None for a
    user's own ONNX file. ``bytes`` are those of the graph's files. ``mac_ratio`` is the reference's MACs over its own:
    the speed-up if time were all MACs; None too where either is not known. ``blocks`` holds the latencies in ms, one
    array a round; what ran in one round ran at about the same time. ``gpu_ms`` and ``copies_ms`` are medians of what
    calls in the same rounds took by the GPU's own clock, computing and copying to it and back; they are within the
    latency, and a call waits for more than these. ``power_w`` and the energy of one image are of a
    phase of their own. Each is None where it is unknown.
    """

    name: str
    bundle: str | None
    precision: str | None
    median_ms: float
    p90_ms: float
    p99_ms: float
    solo_median_ms: float
    gpu_ms: float | None = None
    copies_ms: float | None = None
    macs: int | None
    parameters: int | None
    bytes: int
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    mac_ratio: float | None
    power_w: float | None
    energy_mj: float | None
    energy_above_idle_mj: float | None
    blocks: tuple[Block, ...] = field(repr=False, compare=False)

    @property
    def solo_agrees(self) -> bool:
        """Whether the median in a process of its own bears out the interleaved one."""
        return agrees(self.solo_median_ms, self.median_ms)

    @property
    def block_medians_ms(self) -> list[float]:
        """The median of each block."""
        return [float(np.median(block)) for block in self.blocks]

    @property
    def calls(self) -> int:
        """Calls that were counted, in all blocks."""
        return sum(len(block) for block in self.blocks)

    def as_json(self) -> dict[str, Any]:
        """Return the row as ``smart-bench --json`` prints it."""
        figures = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "blocks"}
        return figures | {
            "solo_agrees": self.solo_agrees,
            "blocks": len(self.blocks),
            "calls": self.calls,
            "block_medians_ms": self.block_medians_ms,
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison: the table's rows, the first bundle's switch (None if it has one path only), how it was measured.

    ``bundles`` are by path, as the user wrote it, and in the user's order; ``reference`` is the row that speed-ups are
    against, by its place in ``rows``, None without one; ``baseline`` is the user's own ONNX file, if any. ``clocks``
    are those right after the last block, and ``throttled`` says what held them back since the first.
    """

    bundles: Mapping[str, Bundle]
    baseline: Baseline | None
    engine: str
    batch: int
    threads: int
    seed: int
    rows: tuple[Row, ...]
    reference: int | None
    switch: SwitchTimes | None
    energy: Sensing
    clocks: tuple[Clock, ...]
    throttled: tuple[str, ...]
    environment: Environment

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computed."""
        return engine_info(self.engine).part == "gpu"

    @property
    def first(self) -> Bundle:
        """The first bundle: its dense graph is the reference, its switch is timed."""
        return next(iter(self.bundles.values()))

    def label(self, row: Row, *, bundle: str | None = None) -> str:
        """Return what tells ``row`` from the others; ``bundle`` is a shorter word for its bundle."""
        if row.bundle is None or len(self.bundles) == 1:
            return row.name
        differ = len({opened.manifest.precision for opened in self.bundles.values()}) > 1
        return f"{row.bundle if bundle is None else bundle}: {row.name}{f' {row.precision}' if differ else ''}"

    def notes(self, bundle: Bundle) -> tuple[str, ...]:
        """Return what to know about ``bundle`` on the engine that was measured."""
        return notes_on(bundle.manifest, engine_name=self.engine)

    def as_json(self) -> dict[str, Any]:
        """Return what ``smart-bench --json`` prints."""
        reference = None if self.reference is None else self.rows[self.reference]
        return {
            "bundle_digest": self.first.digest,
            "bundles": [
                {
                    "bundle": path,
                    "digest": bundle.digest,
                    "signed_by": bundle.signer,
                    "target": bundle.manifest.target.name,
                    "profile": bundle.manifest.target.profile,
                    "precision": bundle.manifest.precision,
                    "notes": list(self.notes(bundle)),
                }
                for path, bundle in self.bundles.items()
            ],
            "baseline": None if self.baseline is None else asdict(self.baseline),
            "accuracies": {
                path: [one.record() for one in accuracies(bundle.manifest)] for path, bundle in self.bundles.items()
            },
            "reference": None if reference is None else {"bundle": reference.bundle, "name": reference.name},
            "engine": self.engine,
            "batch": self.batch,
            "threads": self.threads,
            "seed": self.seed,
            "measured": MEASURED,
            "rows": [row.as_json() for row in self.rows],
            "switch": None if self.switch is None else asdict(self.switch),
            "energy": asdict(self.energy),
            "clocks": [asdict(clock) for clock in self.clocks],
            "throttled": list(self.throttled),
            "environment": asdict(self.environment),
        }
