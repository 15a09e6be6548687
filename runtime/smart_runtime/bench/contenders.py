"""What a comparison runs: the graphs of one or more bundles, and any other ONNX classifier to hold them against."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import DENSE
from smart_runtime.bundle.signatures import public_key
from smart_runtime.engines import Engine, EngineOptions, create_engine, open_engine
from smart_runtime.engines.onnx_weights import check_bounds, external_locations
from smart_runtime.errors import BundleError, EngineError, InputError
from smart_runtime.proofs import facts_of, proofs_by_export

BASELINE = "baseline"
"""The name of the row of a user's own ONNX file."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a graph lies, in words that another process understands.

    ``place`` is an absolute path. With a ``graph`` it is that graph of the bundle there, whose digest is ``digest``;
    else it is an ONNX file. ``shape`` is its input's: channels, height, width.
    """

    place: str
    graph: str | None
    digest: str | None
    shape: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One graph of a comparison.

    ``bundle`` is the bundle's path as the user wrote it; it, ``precision``, ``macs`` (of one image) and ``parameters``
    are None for a user's own file, of which they are not known. ``bytes`` are those of its files.
    """

    name: str
    bundle: str | None = None
    precision: str | None = None
    macs: int | None = None
    parameters: int | None = None
    bytes: int
    source: Source


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A user's own ONNX file: ``sha256`` is of its graph, without external data, which no latency depends on."""

    file: str
    sha256: str
    bytes: int


def open_bundles(paths: Sequence[str], *, trust: str | os.PathLike[str] | None = None) -> dict[str, Bundle]:
    """Open the bundles to compare, by path, in order; all of them signed with the key ``trust`` where one is given.

    Raises:
        BundleError: One is no bundle, or SignatureError, not signed with the key.
        InputError: Two are the same directory, or take different images.
        OSError: The system cannot read a file.
    """
    bundles: dict[str, Bundle] = {}
    key = public_key(trust)
    for path in paths:
        bundle = Bundle.open(path, trust=key)
        for other, opened in bundles.items():
            if opened.root.samefile(bundle.root):
                raise InputError(f"{path!r} and {other!r} are the same bundle; copy it to compare it with itself")
            if opened.manifest.input.shape != bundle.manifest.input.shape:
                raise InputError(
                    f"expected bundles for images of one size, got {_sizes(opened)} in {other!r} and {_sizes(bundle)} "
                    f"in {path!r}; run smart-bench on each"
                )
        bundles[path] = bundle
    return bundles


def read_baseline(path: Path) -> Baseline:
    """Return what is known about a user's own ONNX file before it runs; whether it can run, `open_contender` finds out.

    Raises:
        EngineError: Not an ONNX file.
        InputError: No such file, or not the files that it keeps tensors in.
        OSError: The system cannot read it.
    """
    if not path.is_file():
        raise InputError(f"no ONNX file for the baseline at {str(path)!r}; check the name")
    model = path.read_bytes()
    size = len(model)
    try:
        locations = external_locations(model)
    except EngineError as error:
        raise EngineError(f"{str(path)!r} is no ONNX file; check the baseline") from error
    try:
        check_bounds(model)
    except EngineError as error:
        raise EngineError(f"{str(path)!r} is no baseline: {error}") from error
    for location in locations:
        file = path.parent / location
        if not file.is_file():
            raise InputError(f"no {location!r} beside {str(path)!r}; copy its external data too")
        size += file.stat().st_size
    return Baseline(file=str(path), sha256=hashlib.sha256(model).hexdigest(), bytes=size)


def contenders(bundles: Mapping[str, Bundle], *, baseline: Baseline | None) -> list[Contender]:
    """Return the rows of a comparison in order: the baseline, then each bundle's graphs."""
    shape = next(iter(bundles.values())).manifest.input.shape
    rows = []
    if baseline is not None:
        source = Source(place=os.fspath(Path(baseline.file).absolute()), graph=None, digest=None, shape=shape)
        rows.append(Contender(name=BASELINE, bytes=baseline.bytes, source=source))
    for path, bundle in bundles.items():
        place = os.fspath(bundle.root.absolute())
        rows += [
            Contender(
                name=graph.name,
                bundle=path,
                precision=bundle.manifest.precision,
                macs=graph.macs,
                parameters=graph.parameters,
                bytes=graph.bytes,
                source=Source(place=place, graph=graph.name, digest=bundle.digest, shape=shape),
            )
            for graph in bundle.manifest.graphs
        ]
    return rows


def reference(rows: Sequence[Contender]) -> int | None:
    """Return which row speed-ups are against: the baseline, or the first bundle's dense graph; None without either."""
    first = rows[0]
    return 0 if first.name == DENSE or first.bundle is None else None


def open_contender(source: Source, *, engine: str, batch: int, threads: int) -> Engine:
    """Return an engine for the graph, made as `SmartModel` makes its own.

    Raises:
        BundleError: The bundle is damaged, or another one than ``source`` was made from.
        EngineError: The engine refuses the graph.
        OSError: The system cannot read a file.
    """
    options = EngineOptions(threads=threads)
    graph = source.graph
    if graph is None:
        return open_engine(engine, Path(source.place), shape=source.shape, batch=batch, options=options)
    bundle = Bundle.open(source.place)
    check_same(bundle, digest=source.digest)
    return create_engine(
        engine,
        bundle.graph_bytes(graph),
        inputs=bundle.manifest.input,
        outputs=bundle.manifest.output,
        options=options,
        prove=lambda made: facts_of(graph, proofs_by_export(made, bundle, graph, options=options)),
    )


def check_same(bundle: Bundle, *, digest: str | None) -> None:
    """Raise BundleError unless ``bundle`` is the one with ``digest``, whose signature was checked if one is needed."""
    if bundle.digest != digest:
        raise BundleError(
            f"expected one bundle at {str(bundle.root)!r} all the while, got another; run the comparison again"
        )


def _sizes(bundle: Bundle) -> str:
    return " x ".join(str(side) for side in bundle.manifest.input.shape)
