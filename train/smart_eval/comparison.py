"""Several checkpoints and bundles in one table: a row a path, of what was measured now and of saved results."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_common.documents import Reader, parse_document, read_limited
from smart_common.errors import shortened
from smart_common.files import replacing
from smart_common.names import is_name
from smart_common.units import si
from smart_eval.attacks.autoattack import AUTOATTACK
from smart_eval.page.included import Included
from smart_eval.subjects import Subject
from smart_eval.terms import Terms, check_terms, terms_of
from smart_train.errors import ConfigError

MAX_BYTES = 64 * 2**20
"""Of a saved result: one of ten models on 50,000 images is below 10 MB."""

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take the start of a formula for


@dataclass(frozen=True)
class Figure:
    """An accuracy, as a fraction, with its 95% interval."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.value:.3f}  [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One path of one subject; None is what nobody knows.

    Attributes:
        subject: the file of the checkpoint, or the bundle.
        ran: what computed its figures, in words.
        digest: of the subject.
        path: its name there.
        method: that it was trained with.
        randomised: whether it draws random numbers, so that attacks followed their mean.
        warned: whether not to rely on it under attack.
        suspect: whether a check of it failed, so that its figures under attack may be too high.
        dense: whether nothing of its network is masked.
        stored, parameters: of all paths together, what they share counted once, and of this one.
        macs: multiply-accumulates for one image.
        latency_ms: the median of a call, by smart-bench.
        bytes: of its graph and weights.
        forwards: what one training image cost, in forward passes of the network.
        examples: on how many images.
        eps: the radius of the attacks, in pixel units.
        seed: of the attacks and of the choice of images.
        clean: the accuracy without attack.
        attacks: by name.
        worst: under all that was tried on it.
        corruptions: the mean over the corruptions of ``corruption_set``.
    """

    subject: str
    ran: str
    digest: str
    path: str
    method: str | None
    randomised: bool
    warned: bool
    suspect: bool
    dense: bool
    stored: int | None
    parameters: int | None
    macs: int | None
    latency_ms: float | None
    bytes: int | None
    forwards: float | None
    examples: int
    eps: float
    seed: int
    clean: Figure
    attacks: Mapping[str, Figure]
    worst: Figure
    corruptions: Figure | None
    corruption_set: str | None


@dataclass(frozen=True)
class Saved:
    """A model of a saved result of smart-eval: its document, and what of it stands in a comparison."""

    document: Mapping[str, Any]
    reader: Reader
    terms: Terms

    @property
    def name(self) -> str:
        """What it is called there."""
        return self.reader.string("model")

    @property
    def key(self) -> tuple[str, str, Terms]:
        """What tells it from others: the subject's digest, what computed its figures, and the terms."""
        return self.reader.string("digest"), self.reader.string("engine"), self.terms

    @property
    def corruption_set(self) -> str | None:
        """The name of the corrupted images that it was measured on too, None without."""
        mean = self.reader.object_or_none("corruptions_mean")
        return None if mean is None else mean.string("set")


def to_measure(subjects: Sequence[Subject], saved: Sequence[Saved]) -> list[Subject]:
    """Return the subjects that no saved result has.

    Raises:
        ConfigError: unless all share data, attacks and the set of corruptions where they have one, or a saved result of
            one of the subjects lacks mixes, corruptions or a policy that are asked for.
    """
    terms = [(one.name, one.terms) for one in saved]
    terms += [(str(one.model.model), Terms.of(one)) for one in subjects]
    check_terms(terms)
    wanted = {one.corrupted.name for one in subjects if one.corrupted is not None}
    sets = sorted(wanted.union(one.corruption_set for one in saved if one.corruption_set is not None))
    if len(sets) > 1:
        raise ConfigError(
            f"the corruptions {sets[0]} and {sets[1]} do not compare; leave one out, or measure them apart"
        )
    known = {one.key: one for one in saved}
    left = []
    for one in subjects:
        found = known.get((one.model.digest, one.model.engine, Terms.of(one)))
        if found is None:
            left.append(one)
        elif lacking := _lacking(found, one):
            raise ConfigError(
                f"the saved result of {found.name} has no {lacking[0]}; leave that file out to measure what is missing"
            )
    return left


def _lacking(saved: Saved, wanted: Subject) -> list[str]:
    """Return what is asked for and not in the saved result."""
    mixes = [name for name in wanted.model.mixes if name not in saved.reader.object("paths").keys]
    corruptions = ["corruptions"] if wanted.corrupted is not None and saved.corruption_set is None else []
    policy = [wanted.policy] if wanted.policy is not None and wanted.policy not in saved.document else []
    return [*mixes, *corruptions, *policy]


def read_saved_results(files: Sequence[Path]) -> list[Saved]:
    """Return the models of results that ``smart-eval --json`` printed, each once; the files may come from anyone.

    Raises:
        ConfigError: a file is missing, too large, damaged, of something else, or of a version that kept less.
    """
    found: dict[tuple[str, str, Terms], Saved] = {}
    for file in files:
        name = str(file)
        data = read_limited(file, what="result of smart-eval", max_bytes=MAX_BYTES, error=ConfigError)
        for one in _models(data, name=name):
            found.setdefault(one.key, one)
    return [*found.values()]


def _models(data: bytes, *, name: str) -> list[Saved]:
    def damaged(what: str) -> ConfigError:
        return ConfigError(f"{shortened(name)} is no result of smart-eval --json: {what}; measure it again")

    readers = parse_document(data, damaged=damaged).objects("models")
    if not readers:
        raise damaged("it has no models")
    found = [Saved(dict(reader.raw), reader, terms_of(reader)) for reader in readers]
    for one in found:  # all of it is read now, not after hours of measuring
        _rows(one.reader, Included())
    return found


def _figure(entry: Reader, value: str, interval: str) -> Figure:
    accuracy, ends = entry.fraction(value), entry.value(interval)
    if accuracy is None:
        raise entry.wrong(value, "a number in [0, 1]")
    if not (isinstance(ends, list) and len(ends) == 2 and all(type(e) in {int, float} and 0 <= e <= 1 for e in ends)):
        raise entry.wrong(interval, "two numbers in [0, 1]")
    return Figure(accuracy, (float(ends[0]), float(ends[1])))


def _accuracy(entry: Reader, key: str) -> Figure:
    return _figure(entry.object(key), "accuracy", "interval")


def _rows(model: Reader, included: Included) -> list[Row]:
    digest, paths, cost = model.string("digest"), model.object("paths"), model.object("cost")
    if not paths.keys:
        raise model.wrong("paths", "one path or more")
    bundle = model.choice("kind", ["checkpoint", "bundle"]) == "bundle"
    graphs = f"{model.string('precision')} graphs, {model.string('engine')}" if bundle else "fp32 masked paths"
    mean = model.object_or_none("corruptions_mean")
    threats = model.object_or_none("threats")
    warnings = model.strings("warnings") if "warnings" in model.keys else ()
    checks = model.objects("checks") if "checks" in model.keys else ()
    failed = {check.string("path") for check in checks if check.value("passed") is False}
    names = [attack.string("name") for attack in model.objects("attacks")]
    speeds, sizes = included.speeds_of(digest), included.bytes_of(digest)
    rows = []
    for path in paths.keys:
        found = paths.object(path)
        attacks = found.object("attacks")
        if not is_name(path):
            raise paths.unlike("printable names of paths")
        if attacks.keys != names:
            raise attacks.unlike(f"the attacks {', '.join(names) or '(none)'}")
        speed = speeds.get(path)
        own = cost.object("paths").object(path)
        size = own.optional_integer("bytes", low=0)
        if size is None:
            size = sizes.get(path)
        rows.append(
            Row(
                subject=model.string("model"),
                ran=graphs,
                digest=digest,
                path=path,
                method=model.optional_string("method"),
                randomised=model.value("randomised") is True,
                warned=any(sentence.startswith(f"the path {path!a} ") for sentence in warnings),
                suspect=path in failed,
                dense=own.value("dense") is True,
                stored=cost.optional_integer("stored_parameters", low=0),
                parameters=own.optional_integer("parameters", low=0),
                macs=own.optional_integer("macs", low=0),
                latency_ms=None if speed is None else speed.median_ms,
                bytes=size,
                forwards=model.optional_number("forwards_per_image"),
                examples=model.integer("examples", low=1),
                eps=terms_of(model).eps,
                seed=model.integer("seed", low=0),
                clean=_figure(found, "clean_accuracy", "clean_interval"),
                attacks={name: _accuracy(attacks, name) for name in names},
                worst=_figure(found, "robust_accuracy", "robust_interval")
                if threats is None
                else _accuracy(threats.object("worst").object("paths"), path),
                corruptions=None if mean is None else _accuracy(mean.object("paths"), path),
                corruption_set=None if mean is None else mean.string("set"),
            )
        )
    return rows


@dataclass(frozen=True)
class Comparison:
    """The rows of several subjects, which share data and attacks."""

    rows: Sequence[Row]

    @classmethod
    def of(cls, documents: Sequence[Mapping[str, Any]], *, included: Included) -> Comparison:
        """Return the rows of models as ``smart-eval --json`` prints them; raises ConfigError if one is damaged."""
        return cls([row for one in documents for row in _rows(_reader(one), included)])

    @property
    def subjects(self) -> list[tuple[str, str]]:
        """Names and digests of the subjects in order."""
        return list(dict.fromkeys((row.subject, row.digest) for row in self.rows))

    @property
    def attack_names(self) -> list[str]:
        """The attacks, which were made on every path."""
        return list(self.rows[0].attacks)

    @property
    def strongest(self) -> str | None:
        """The attack that stands for robustness: AutoAttack, else the one that leaves least over all rows."""
        if AUTOATTACK in self.attack_names:
            return AUTOATTACK
        return min(self.attack_names, key=lambda name: sum(row.attacks[name].value for row in self.rows), default=None)

    def record(self) -> dict[str, Any]:
        """Return it for machines."""
        return {"strongest_attack": self.strongest, "rows": [_cells(row) for row in self.rows]}


def _reader(document: Mapping[str, Any]) -> Reader:
    def damaged(what: str) -> ConfigError:
        return ConfigError(f"a result of smart-eval is damaged: {what}; measure it again")

    return Reader(dict(document), where="", damaged=damaged)


def _cells(row: Row) -> dict[str, Any]:
    """Return one row as plain values, in the order of the columns; no column for what smart-eval was not asked for."""
    cells: dict[str, Any] = {
        "subject": row.subject,
        "ran": row.ran,
        "digest": row.digest,
        "method": row.method,
        "path": row.path,
        "dense": row.dense,
        "randomised": row.randomised,
        "warned": row.warned,
        "suspect": row.suspect,
        "stored_parameters": row.stored,
        "parameters": row.parameters,
        "macs": row.macs,
        "examples": row.examples,
        "eps": row.eps,
        "seed": row.seed,
    }
    figures = {"clean": row.clean, **row.attacks, "worst": row.worst, "corruptions": row.corruptions}
    for name, figure in figures.items():
        low, high = (None, None) if figure is None else figure.interval
        cells |= {name: None if figure is None else figure.value, f"{name}_low": low, f"{name}_high": high}
    return {
        **cells,
        "corruption_set": row.corruption_set,
        "latency_ms": row.latency_ms,
        "bytes": row.bytes,
        "forwards_per_image": row.forwards,
    }


def write_csv(comparison: Comparison, file: Path) -> None:
    """Write a line for each row into ``file``, whole or not at all; what is not known stays empty. Raises OSError."""
    rows = [_cells(row) for row in comparison.rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_plain(cell) for cell in line] for line in ([*rows[0]], *(row.values() for row in rows)))
    with replacing(file) as opened:
        opened.write(text.getvalue().encode("utf-8"))


def is_csv(file: Path) -> bool:
    """Whether `write_csv` wrote ``file``; raises OSError if the system cannot read it."""
    with file.open("rb") as opened:
        return opened.read(64).startswith(b"subject,ran,digest,method,path,")


def _plain(value: Any) -> Any:
    """Return a name that a spreadsheet takes for no formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def table(comparison: Comparison) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows for people; a path with ``(!)`` is not to be relied on under attack.

    One with ``suspect`` failed a check.
    """
    rows, attacks = comparison.rows, comparison.attack_names
    counts = ", ".join(sorted({str(row.examples) for row in rows}))
    made = f"{', '.join(attacks)}, eps {rows[0].eps:.4g}" if attacks else "no attack"
    seeds = " and ".join(map(str, sorted({row.seed for row in rows})))
    subjects = len(comparison.subjects)
    title = f"{subjects} model{'s' if subjects > 1 else ''}: {counts} test images, {made}, seed {seeds}"
    known = {
        "stored": [_number(row.stored) for row in rows],
        "parameters": [_number(row.parameters) for row in rows],
        "MACs": [_number(row.macs) for row in rows],
        "clean": [str(row.clean) for row in rows],
        **{name: [str(row.attacks[name]) for row in rows] for name in attacks},
        **({"worst of all": [str(row.worst) for row in rows]} if attacks else {}),
        "corruptions": ["" if row.corruptions is None else str(row.corruptions) for row in rows],
        "latency": ["" if row.latency_ms is None else f"{row.latency_ms:.3g} ms" for row in rows],
        "bytes": ["" if row.bytes is None else si(row.bytes, "B") for row in rows],
        "forwards an image": ["" if row.forwards is None else f"{row.forwards:g}" for row in rows],
    }
    columns = [name for name, cells in known.items() if any(cells)]
    return (
        f"{title}, 95% intervals",
        ["model", "method", "path", *columns],
        [
            [
                f"{row.subject} ({row.ran}{', randomised' if row.randomised else ''})",
                row.method or "",
                f"{row.path}{' (!)' if row.warned else ''}{' suspect' if row.suspect else ''}",
                *(known[name][number] for name in columns),
            ]
            for number, row in enumerate(rows)
        ],
    )


def _number(value: int | None) -> str:
    return "" if value is None else si(value)
