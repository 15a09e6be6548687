"""The result of a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smart_runtime.bench.environment import Environment
from smart_runtime.bench.statistics import Block, agrees
from smart_runtime.bench.switching import SwitchTimes
from smart_runtime.manifest import Manifest

MEASURED = "engine.run on prepared float32 input"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One graph's figures; speed-ups and ``mac_ratio`` are against ``dense``, None without it.

    ``bytes`` are those of its files. ``mac_ratio`` is dense's MACs over its own: the speed-up if time were all MACs.
    """

    name: str
    median_ms: float
    p90_ms: float
    p99_ms: float
    solo_median_ms: float
    macs: int
    parameters: int
    bytes: int
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    mac_ratio: float | None

    @property
    def solo_agrees(self) -> bool:
        """Whether the median in a process of its own bears out the interleaved one."""
        return agrees(self.solo_median_ms, self.median_ms)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison: the table's rows, the switch (None with one path only), and how it was measured.

    ``blocks`` holds each graph's latencies, one array a round, for the plot.
    """

    manifest: Manifest
    digest: str
    engine: str
    batch: int
    threads: int
    seed: int
    rows: tuple[Row, ...]
    switch: SwitchTimes | None
    environment: Environment
    blocks: dict[str, list[Block]]

    def as_json(self) -> dict[str, Any]:
        """Return what ``smart-bench --json`` prints."""
        return {
            "bundle_digest": self.digest,
            "engine": self.engine,
            "batch": self.batch,
            "threads": self.threads,
            "seed": self.seed,
            "measured": MEASURED,
            "rows": [
                asdict(row)
                | {
                    "solo_agrees": row.solo_agrees,
                    "blocks": len(self.blocks[row.name]),
                    "calls": sum(len(block) for block in self.blocks[row.name]),
                }
                for row in self.rows
            ],
            "switch": None if self.switch is None else asdict(self.switch),
            "environment": asdict(self.environment),
        }
