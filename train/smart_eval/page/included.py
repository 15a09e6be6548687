"""Saved results of smart-export and smart-bench, read for the page; the files may come from anyone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_common.documents import Reader, parse_document, read_limited
from smart_runtime.bench.saved import MAX_BYTES
from smart_train.errors import ConfigError

_MAYBE_KNOWN = ("speedup", "speedup_low", "speedup_high", "mac_ratio", "power_w", "energy_mj")  # of a row


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One graph as smart-bench measured it, its speed-up and MACs ``against`` another; None where it did not say."""

    graph: str
    bundle: str | None
    digest: str | None
    precision: str | None
    median_ms: float
    p90_ms: float
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    mac_ratio: float | None
    bytes: int
    power_w: float | None
    energy_mj: float | None
    agrees: bool
    against: str | None


@dataclass(frozen=True, kw_only=True)
class Switch:
    """How long it took to change paths, until the first result of the new one, and to load a model instead."""

    median_ms: float
    first_result_ms: float
    cold_load_ms: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A result of smart-bench: its rows, what they were measured with and on, what to know about them."""

    file: str
    rows: Sequence[Speed]
    against: str | None
    device: str
    conditions: Mapping[str, str]
    switch: Switch | None


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much accuracy an export cost, as fractions: positive is a loss; its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph as smart-export wrote it; no drop where nothing was judged."""

    name: str
    density: float | None
    macs: int
    dense_macs: int
    parameters: int
    bytes: int
    clean_drop: Drop | None
    robust_drop: Drop | None


@dataclass(frozen=True, kw_only=True)
class Export:
    """A result of smart-export; digests, and by what its accuracies were ``judged``, are None in older versions'."""

    file: str
    bundle: str
    target: str
    profile: str
    precision: str
    graphs: Sequence[Graph]
    judged: str | None
    checkpoint_digest: str | None
    bundle_digest: str | None


@dataclass(frozen=True, kw_only=True)
class Included:
    """All that was given beside the models."""

    benches: Sequence[Bench] = ()
    exports: Sequence[Export] = ()

    def speeds_of(self, digest: str) -> dict[str, Speed]:
        """Return what was measured of the graphs of a bundle or, as an export says, of a checkpoint, by graph.

        Of several bundles of one checkpoint the fp32 one counts, since accuracies are measured in fp32.
        """
        own = {digest, *(one.bundle_digest for one in self.exports if one.checkpoint_digest == digest)}
        return best_of([row for bench in self.benches for row in bench.rows if row.digest in own and row.digest])

    def bytes_of(self, digest: str) -> dict[str, int]:
        """Return the bytes of the graphs that were made of a checkpoint, by graph; of several the fp32 ones count."""
        own = [one for one in self.exports if one.checkpoint_digest == digest]
        return {
            graph.name: graph.bytes
            for one in sorted(own, key=lambda one: one.precision == "fp32")
            for graph in one.graphs
        }


def best_of(rows: Sequence[Speed]) -> dict[str, Speed]:
    """Return one row a graph, the first in fp32 where there is one."""
    best: dict[str, Speed] = {}
    for row in sorted(rows, key=lambda row: row.precision not in {"fp32", None}):  # stable: the first given wins
        best.setdefault(row.graph, row)
    return best


def read_included(files: Sequence[Path]) -> Included:
    """Return what the files hold, each told by its keys.

    Raises:
        ConfigError: a file is missing, too large, damaged, or no result of smart-export or smart-bench.
        OSError: the system cannot read one.
    """
    found = [_read(file) for file in files]
    return Included(
        benches=tuple(one for one in found if isinstance(one, Bench)),
        exports=tuple(one for one in found if isinstance(one, Export)),
    )


def _read(file: Path) -> Bench | Export:
    name = str(file)
    data = read_limited(file, what="result of smart-export or smart-bench", max_bytes=MAX_BYTES, error=ConfigError)

    def damaged(what: str) -> ConfigError:
        return ConfigError(f"{name!r} is no result of smart-export --json or smart-bench --json: {what}; save it again")

    root = parse_document(data, damaged=damaged)
    if {"rows", "engine", "environment"} <= set(root.keys):
        return _bench(root, name)
    if {"bundle", "target", "paths", "precision"} <= set(root.keys):
        return _export(root, name)
    raise damaged(
        "it is one of smart-eval, which --include does not take" if "models" in root.keys else "it is something else"
    )


def _bench(root: Reader, name: str) -> Bench:
    digests = {entry.string("bundle"): entry.string("digest") for entry in root.objects("bundles")}
    reference = root.object_or_none("reference")
    against = None if reference is None else reference.string("name")
    rows = tuple(_speed(entry, digests, against=against) for entry in root.objects("rows"))
    if not rows:
        raise root.wrong("rows", "the rows of a comparison")
    environment = root.object("environment")
    energy, switch = root.object_or_none("energy"), root.object_or_none("switch")
    conditions = {
        "engine": root.string("engine"),
        "batch": str(root.integer("batch", low=1)),
        "threads": str(root.integer("threads", low=1)),
        "usable cores": str(environment.integer("usable_cores", low=1)),
        "governor": environment.optional_string("governor") or "unknown",
        "power mode": environment.optional_string("power_mode") or "unknown",
        **{f"{package} version": found for package, found in environment.object("versions").texts().items()},
    }
    if energy is not None:
        source, unknown = energy.optional_string("source"), energy.optional_string("unknown")
        conditions["energy"] = f"by {source}" if source else f"unknown: {unknown}" if unknown else "unknown"
    return Bench(
        file=name,
        rows=rows,
        against=against,
        device=f"{environment.string('cpu')}, {environment.string('machine')}",
        conditions=conditions,
        switch=None
        if switch is None
        else Switch(
            median_ms=switch.positive("median_us") / 1000,
            first_result_ms=switch.positive("first_result_ms"),
            cold_load_ms=switch.positive("cold_load_ms"),
        ),
    )


def _speed(entry: Reader, digests: Mapping[str, str], *, against: str | None) -> Speed:
    bundle = entry.optional_string("bundle")
    return Speed(
        graph=entry.string("name"),
        bundle=bundle,
        digest=None if bundle is None else digests.get(bundle),
        precision=entry.optional_string("precision"),
        median_ms=entry.positive("median_ms"),
        p90_ms=entry.positive("p90_ms"),
        bytes=entry.integer("bytes", low=0),
        **{key: entry.optional_number(key) for key in _MAYBE_KNOWN},
        agrees=entry.value("solo_agrees") is not False,
        against=against,
    )


def _export(root: Reader, name: str) -> Export:
    gate = root.optional_object("gate") or {}
    paths = root.object("paths")
    graphs = [
        _graph(path, paths.object(path), root.object("gate").object(path) if path in gate else None)
        for path in paths.keys
    ]
    baseline = root.object_or_none("baseline")
    if baseline is not None:
        graphs.append(_graph(baseline.string("name"), baseline, None))
    return Export(
        file=name,
        **{key: root.string(key) for key in ("bundle", "target", "profile", "precision")},
        graphs=tuple(graphs),
        judged=_judged(root),
        checkpoint_digest=root.optional_string("checkpoint_digest"),
        bundle_digest=root.optional_string("bundle_digest"),
    )


def _judged(root: Reader) -> str | None:
    """Return which images the gate judged by, under which attack, and on which engine."""
    if root.optional_object("judged_by") is None:
        return None
    by = root.object("judged_by")
    count, source, attack = by.integer("images", low=1), by.string("source"), by.string("attack")
    engine = by.optional_string("engine")
    return f"{count} images of {source}, {attack} made on the masked path" + ("" if engine is None else f", {engine}")


def _graph(name: str, entry: Reader, gate: Reader | None) -> Graph:
    return Graph(
        name=name,
        density=entry.fraction("density"),
        **{key: entry.integer(key, low=0) for key in ("macs", "dense_macs", "parameters", "bytes")},
        clean_drop=None if gate is None else _drop(gate, "clean_accuracy"),
        robust_drop=None if gate is None else _drop(gate, "robust_accuracy"),
    )


def _drop(gate: Reader, key: str) -> Drop | None:
    found = gate.optional_object(key)
    if found is None:
        return None
    ends = [_signed(gate.object(key), name) for name in ("drop", "low", "high")]
    return Drop(value=ends[0], low=ends[1], high=ends[2])


def _signed(entry: Reader, key: str) -> float:
    value: Any = entry.value(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
        raise entry.wrong(key, "a number in [-1, 1]")
    return float(value)
