"""Did the speed-ups change between two saved results? Speed-ups and not milliseconds, which depend on the day."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from smart_runtime.bench.measure import Interval, interval, resampled
from smart_runtime.bench.saved import Medians, Saved, SavedRow
from smart_runtime.errors import InputError

Verdict: TypeAlias = Literal["faster", "slower", "no difference shown"]

RESAMPLES = 4000
CAVEAT = "an interval covers the variation within each run only: another process or another day may lie outside"


@dataclass(frozen=True, kw_only=True)
class ChangedRow:
    """One graph in both results, called ``name`` in both: its speed-ups as they were saved, and B's over A's."""

    name: str
    bundle_a: str | None
    bundle_b: str | None
    speedup_a: Interval
    speedup_b: Interval
    change: Interval

    @property
    def verdict(self) -> Verdict:
        """What the interval of the change says: it shows a difference if it excludes 1."""
        if self.change.low > 1:
            return "faster"
        return "slower" if self.change.high < 1 else "no difference shown"

    def as_json(self) -> dict[str, Any]:
        """Return the row as ``smart-bench --compare --json`` prints it."""
        flat: dict[str, Any] = {"name": self.name, "bundle_a": self.bundle_a, "bundle_b": self.bundle_b}
        ratios = {"speedup_a": self.speedup_a, "speedup_b": self.speedup_b, "change": self.change}
        for key, ratio in ratios.items():
            flat |= {key: ratio.value, f"{key}_low": ratio.low, f"{key}_high": ratio.high}
        return flat | {"verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A bundle or a condition in which the two results differ, in words for people."""

    what: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """Two results compared.

    ``only_a`` and ``only_b`` are the rows without a partner, as (bundle, name); ``by_order`` are the bundles, of A and
    of B, that were taken for each other for their place alone.
    """

    a: Saved
    b: Saved
    seed: int
    rows: tuple[ChangedRow, ...]
    differences: tuple[Difference, ...]
    by_order: tuple[tuple[str, str], ...]
    only_a: tuple[SavedRow, ...]
    only_b: tuple[SavedRow, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what ``smart-bench --compare --json`` prints."""
        reference = {"name": self.a.reference.name, "bundle_a": self.a.reference.bundle}
        return {
            "a": self.a.file,
            "b": self.b.file,
            "reference": reference | {"bundle_b": self.b.reference.bundle},
            "seed": self.seed,
            "resamples": RESAMPLES,
            "rows": [row.as_json() for row in self.rows],
            "differences": [asdict(difference) for difference in self.differences],
            "bundles_matched_by_order": [{"a": a, "b": b} for a, b in self.by_order],
            "only_a": [{"bundle": row.bundle, "name": row.name} for row in self.only_a],
            "only_b": [{"bundle": row.bundle, "name": row.name} for row in self.only_b],
            "caveat": CAVEAT,
        }


def compare_saved(a: Saved, b: Saved, *, seed: int) -> Change:
    """Compare the speed-ups of two results.

    Bundles of the same path are taken for each other, then the others in their order; of those, rows of the same name.

    Raises:
        InputError: The speed-ups are against different rows, or no other row is in both.
    """
    paths = _partners(a.bundles, b.bundles)
    found = {(row.bundle, row.name): row for row in b.rows}
    pairs = []
    for row in a.rows:
        partner = found.get((None if row.bundle is None else paths.get(row.bundle, ""), row.name))
        if partner is not None:
            pairs.append((row, partner))
    if (a.reference, b.reference) not in pairs:
        raise InputError(
            f"expected two results with speed-ups against the same row, got {_label(a.reference)!r} in {a.file!r} and "
            f"{_label(b.reference)!r} in {b.file!r}; measure both with the same first bundle or the same --baseline"
        )
    compared = [(one, other) for one, other in pairs if one is not a.reference]
    if not compared:
        raise InputError(
            f"{a.file!r} and {b.file!r} have no row in common beside {_label(a.reference)!r}; "
            "compare results of the same kind of bundle"
        )
    rng = np.random.default_rng(seed)
    changes = _changes(
        _medians(a.reference, [one for one, _ in compared]),
        _medians(b.reference, [other for _, other in compared]),
        rng=rng,
    )
    rows = tuple(
        ChangedRow(
            name=one.name,
            bundle_a=one.bundle,
            bundle_b=other.bundle,
            speedup_a=Interval(value=one.speedup, low=one.speedup_low, high=one.speedup_high),
            speedup_b=Interval(value=other.speedup, low=other.speedup_low, high=other.speedup_high),
            change=change,
        )
        for (one, other), change in zip(compared, changes, strict=True)
    )
    matched = {id(row) for pair in pairs for row in pair}
    return Change(
        a=a,
        b=b,
        seed=seed,
        rows=rows,
        differences=_differences(a, b, paths),
        by_order=tuple((one, other) for one, other in paths.items() if one != other),
        only_a=tuple(row for row in a.rows if id(row) not in matched),
        only_b=tuple(row for row in b.rows if id(row) not in matched),
    )


def _partners(a: Iterable[str], b: Iterable[str]) -> dict[str, str]:
    """Return which bundle of ``b`` each one of ``a`` is taken for, in the order of ``a``."""
    rest = iter([path for path in b if path not in a])
    found = {path: path if path in b else next(rest, None) for path in a}
    return {path: partner for path, partner in found.items() if partner is not None}


def _medians(reference: SavedRow, rows: Sequence[SavedRow]) -> Medians:
    """Return the block medians of the reference and of ``rows``, (1 + rows, rounds)."""
    return np.stack([row.block_medians_ms for row in (reference, *rows)])


def _changes(a: Medians, b: Medians, *, rng: np.random.Generator) -> list[Interval]:
    """Return each row's speed-up in B over that in A with its percentile bootstrap 95% interval.

    A speed-up is here the ratio of the medians of the block medians, since single calls are not kept. The two runs are
    drawn independently of each other, A's first; ``a`` and ``b`` are block medians in ms, (1 + rows, rounds), those of
    the reference first.
    """
    values = _speed_ups(b) / _speed_ups(a)
    drawn_a, drawn_b = (_resampled(run, rng) for run in (a, b))
    return [interval(value, drawn) for value, drawn in zip(values, (drawn_b / drawn_a).T, strict=True)]


def _resampled(medians: Medians, rng: np.random.Generator) -> Medians:
    """Return the speed-ups of each resample, (RESAMPLES, rows)."""
    rounds = medians.shape[1]
    return resampled(lambda drawn: _speed_ups(medians[:, drawn]), rounds=rounds, resamples=RESAMPLES, rng=rng)


def _speed_ups(medians: Medians) -> Medians:
    """Return the speed-ups of block medians (1 + rows, rounds), those of the reference first: (rows,)."""
    of_rows: Medians = np.median(medians, axis=1)
    ratios: Medians = of_rows[0] / of_rows[1:]
    return ratios


def _differences(a: Saved, b: Saved, paths: Mapping[str, str]) -> tuple[Difference, ...]:
    """Return where the results differ: in their conditions, and in the bundles that ``paths`` takes for each other."""
    pairs = [("", a.conditions, b.conditions)]
    pairs += [(f" of {path}", a.bundles[path], b.bundles[partner]) for path, partner in paths.items()]
    return tuple(
        Difference(what=name + of, a=one.get(name, "none"), b=other.get(name, "none"))
        for of, one, other in pairs
        for name in dict.fromkeys((*one, *other))
        if one.get(name) != other.get(name)
    )


def _label(row: SavedRow) -> str:
    return row.name if row.bundle is None else f"{row.bundle}: {row.name}"
