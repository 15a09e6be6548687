"""Check a bundle: its bytes, its graphs, and that they belong to a checkpoint."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from torch import fx

from smart_common.errors import shortened
from smart_export.errors import ExportError, VerificationError
from smart_export.evidence import divide
from smart_export.folding import fold, fold_dense, padded_masks, unmasked
from smart_export.graph import Converter
from smart_export.mixing import check_dial
from smart_export.operators import foreign_operators, require_own_operators
from smart_export.precision import INT8, MAX_CHECKED_DROP, TOLERANCE_INT8, Precision, tolerance_for
from smart_export.proof import rounding_of
from smart_export.sources import CheckpointLike, Sources, read_sources
from smart_export.verify import (
    DENSE_IMAGES,
    RANDOM_IMAGES,
    Images,
    PathGate,
    Verdict,
    agreement,
    engine_scores,
    path_gate,
    reference_scores,
    require,
    verification_images,
)
from smart_export.weights import (
    LEAST_SHARE,
    GraphWeights,
    require_weights,
    share_as_converted,
    share_of_weights,
    weights_of,
)
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import DENSE, GraphInfo, Manifest
from smart_runtime.bundle.signatures import short_fingerprint
from smart_runtime.engines import REFERENCE_ENGINE, Engine, EngineOptions, create_engine
from smart_runtime.engines.onnx_weights import external_tensors
from smart_runtime.outputs import check_scores
from smart_runtime.reference import ParityResult, compare, stored_scores
from smart_train import Checkpoint
from smart_train.checkpoint.format import check_source

_ALIGNMENTS = (1, 8, 16, 4, 2, 32, 64)  # of channels, on one target or another


@dataclass(frozen=True)
class Finding:
    """One thing that was checked and holds."""

    check: str
    detail: str


@dataclass(frozen=True)
class CheckResult:
    """All that holds of a bundle; what does not is raised instead. ``agreements`` is empty without a source."""

    findings: tuple[Finding, ...]
    agreements: dict[str, ParityResult]


def check_bundle(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    source: CheckpointLike | Mapping[str, CheckpointLike] | None = None,
    engine: str = REFERENCE_ENGINE,
) -> CheckResult:
    """Check every byte, every graph with onnx.checker, a run of each on ``engine``, and agreement with ``source``.

    Args:
        bundle: one that is open, or its directory.
        source: the checkpoint that it was exported from, or its file; of two separate networks one for each path.
        engine: what runs the graphs; the reference engine unless told otherwise.

    Raises:
        BundleError: if a file is missing, extra or changed.
        CheckpointError: if there is no checkpoint in the file ``source``.
        EngineError: if a graph is no plain one, or the engine refuses it.
        ExportError: if a graph is not valid ONNX, or two checkpoints do not go into one bundle.
        ConfigError: if ``source`` has another input shape, other classes or paths.
        VerificationError: if a graph does not compute what its path of ``source`` computes, or roles, temperatures or
            mixes are not those of ``source``.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    sources = None if source is None else read_sources(source)
    bundle.verify()
    findings = [Finding("checksums", f"{len(bundle.sums)} files are as exported"), Finding("manifest", "well formed")]
    if bundle.signer is not None:
        findings.append(Finding("signature", f"by the key {short_fingerprint(bundle.signer)}"))
    if sources is not None:
        check_source(bundle.manifest, sources.whole, paths=sources.paths)
        _check_roles(bundle.manifest, sources.whole)
    agreements: dict[str, ParityResult] = {}
    manifest = bundle.manifest

    @functools.cache  # seconds for the first graph, and hardly any for the next one of the same kind
    def to_onnx(opset: int, _for_cpu: bool) -> Converter:
        assert sources is not None
        return Converter(input_shape=sources.whole.input_shape, opset=opset)

    for graph in (*manifest.paths.values(), *([] if manifest.baseline is None else [manifest.baseline])):
        content = bundle.graph_bytes(graph.name)
        external_tensors(content)  # first: onnx's checker expands functions and follows them into each other
        _check_onnx(graph, content)
        findings.append(Finding(f"{graph.name}: ONNX", "onnx.checker full check passes"))
        opened = create_engine(
            engine, content, inputs=manifest.input, outputs=manifest.output, options=EngineOptions(threads=1)
        )
        try:
            answered = _answered(opened, bundle, graph)
            if sources is None:
                findings += [*_run(opened, graph, manifest), *_as_stored(answered, name=graph.name)]
                continue
            source = sources.first if graph.name == DENSE else sources.of_path[graph.name]
            weights = weights_of(content)
            _check_said_precision(graph, weights, said=manifest.precision)
            found, gate = _agreement(opened, graph, source, precision=weights.precision)
        finally:
            opened.close()
        require(found, name=graph.name)
        if gate is not None:
            _require_accuracy(gate, name=graph.name)
        share = share_of_weights(_folds(graph, source), weights)
        if share < LEAST_SHARE:
            share = max(share, share_as_converted(_folds(graph, source), weights, shape=source.input_shape))
        require_weights(share, name=graph.name)
        model = onnx.load_model_from_string(content.model)
        foreign = foreign_operators(model, _folds(graph, source), precision=weights.precision, to_onnx=to_onnx)
        require_own_operators(foreign, name=graph.name)
        findings += _as_stored(answered, name=graph.name)
        agreements[graph.name] = found
        detail = f"{found.images} images, difference {found.max_rel_diff:.1e}, all classes equal"
        findings.append(Finding(f"{graph.name}: agrees with the source", detail))
        findings.append(Finding(f"{graph.name}: weights", f"{share:.1%} of the source's are in the graph"))
        findings.append(Finding(f"{graph.name}: operators", "only those of its own export"))
        if gate is not None:
            accuracies = ", ".join(f"{what} {drop.before:.3f} to {drop.after:.3f}" for what, drop in gate.drops.items())
            findings.append(Finding(f"{graph.name}: accuracy", accuracies))
    return CheckResult((*findings, *_mixes(manifest, sources)), agreements)  # last: a wrong graph is worse


def _check_onnx(graph: GraphInfo, content: GraphBytes) -> None:
    # The checker looks for external tensors beside a file, so it gets one: a copy of the very bytes that were checked.
    with tempfile.TemporaryDirectory(prefix="smart-export-check-") as folder:
        model = Path(folder, PurePosixPath(graph.file).name)
        model.write_bytes(content.model)
        if content.weights is not None and content.weights_name is not None:
            Path(folder, content.weights_name).write_bytes(content.weights)
        try:
            onnx.checker.check_model(str(model), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"{graph.file} is no valid ONNX ({shortened(str(error))}); export it again") from error


def _mixes(manifest: Manifest, sources: Sources | None) -> list[Finding]:
    if sources is None:
        return []
    check_dial(manifest, sources)
    return [Finding(name, "the mix that the source gives") for name in manifest.mixes]


def _check_roles(manifest: Manifest, source: Checkpoint) -> None:
    for name, graph in manifest.paths.items():
        if graph.role is not source.role(name):
            raise VerificationError(
                f"the roles of the path {name!r} differ between the bundle, {graph.role}, and the checkpoint, "
                f"{source.role(name)}; give the checkpoint that it was exported from"
            )


def _check_said_precision(graph: GraphInfo, weights: GraphWeights, *, said: str) -> None:
    if weights.precision != said:
        raise VerificationError(
            f"the manifest says {shortened(said)}, and the weights of {graph.file} are {weights.precision}; "
            "export the bundle again"
        )


def _run(engine: Engine, graph: GraphInfo, manifest: Manifest) -> list[Finding]:
    images = np.random.default_rng(0).random((2, *manifest.input.shape), dtype=np.float32)
    scores = engine.run(images)
    check_scores(scores, images=len(images), classes=manifest.output.classes, name=graph.name)
    return [Finding(f"{graph.name}: run", "finite scores")]


def _answered(engine: Engine, bundle: Bundle, graph: GraphInfo) -> ParityResult | None:
    stored = stored_scores(bundle, graph.name)
    if stored is None:
        return None
    # On processors without VNNI ONNX Runtime's own int8 kernels saturate, so exports on others answer otherwise.
    return compare(engine, stored, tolerance=TOLERANCE_INT8 if bundle.manifest.precision == INT8 else None)


def _as_stored(found: ParityResult | None, *, name: str) -> list[Finding]:
    """Return that a graph answers as it did at export; nothing of a bundle that does not say how it did."""
    if found is None:
        return []
    if not found.holds:
        raise VerificationError(
            f"the graph {name!r} does not answer as at export within {found.tolerance:g} and on every class: over "
            f"{found.images} images the difference is {found.max_rel_diff:.3g}, and {found.argmax_agreement:.1%} of "
            "the classes are equal; export the bundle again, or check it with another --engine"
        )
    detail = f"as at export on {found.images} images, difference {found.max_rel_diff:.1e}"
    return [Finding(f"{name}: reference scores", detail)]


def _agreement(
    engine: Engine, graph: GraphInfo, source: Checkpoint, *, precision: Precision
) -> tuple[ParityResult, PathGate | None]:
    """Compare the scores of a graph; what they may differ by is known here, whatever the manifest says of it.

    On the checkpoint's own images, and on others that nobody can have known, new each time. Scores of int8 may differ
    by much, so its accuracies are compared too; of the baseline, which judges nothing, they are not.
    """
    dense = graph.name == DENSE
    name = source.net.path_names[0] if dense else graph.name
    reference = unmasked(source.net, path=name) if dense else source.net.path(name)
    judging, _ = divide(source, precision=precision)  # part of what the export looked at, whatever judged there
    own = verification_images(judging.samples, path=name, random_images=0, most=DENSE_IMAGES if dense else None)[:2]
    unknown = unknown_images(own[0], count=DENSE_IMAGES if dense else RANDOM_IMAGES, generator=np.random.default_rng())
    images = [*own, unknown]  # no seed: a graph that knows the images beforehand is to be found
    tolerance = TOLERANCE_INT8
    if precision != INT8:  # a deep network rounds more, and how much its own float64 says
        tolerance = tolerance_for(precision, rounding=rounding_of(reference, images)) or 0.0
    got = engine_scores(engine, images, classes=len(source.class_names), name=graph.name)
    expected = reference_scores(reference, images)
    found = agreement(expected, got, tolerance=tolerance)
    if dense or precision != INT8:
        return found, None
    count = len(own[0])
    clean, attacked = slice(count), slice(count, 2 * count)
    gate = path_gate(
        judging.samples.labels.numpy(),
        clean=(expected[clean], got[clean]),
        adversarial=(expected[attacked], got[attacked]),
    )
    return found, gate


def _require_accuracy(gate: PathGate, *, name: str) -> None:
    """Raise VerificationError if an accuracy dropped, beyond doubt, by more than a check allows."""
    for what, paired in gate.drops.items():
        if paired.verdict(max_drop=MAX_CHECKED_DROP, verified=False) is Verdict.FAILS:
            raise VerificationError(
                f"the {what} of the graph {name!r} is {paired.after:.3f} on the checkpoint's samples, and that of its "
                f"masked path {paired.before:.3f}; it does not belong to this checkpoint, or lost too much in int8: "
                "export it again in a higher precision"
            )


def unknown_images(own: Images, *, count: int, generator: np.random.Generator) -> Images:
    """Return ``count`` images that are like ``own``, float32 (N, C, H, W) in [0, 1], and none of them.

    They are flipped, shifted, mixed in pairs, and more or less drowned in noise, in turn. Every second one of each is
    rounded to whole 1/255, as all pictures are that come from a file or a camera.
    """
    first, second = (own[generator.integers(0, len(own), count)] for _ in range(2))
    clear = generator.random((count, 1, 1, 1), dtype=np.float32)
    noise = generator.random(first.shape, dtype=np.float32)
    steps = generator.integers(1, max(2, min(own.shape[2:]) // 4), (count, 2))
    kinds = [
        first[..., ::-1],
        np.stack([np.roll(image, step, axis=(1, 2)) for image, step in zip(first, steps, strict=True)]),
        clear * first + (1 - clear) * second,
        clear * first + (1 - clear) * noise,
    ]
    found: Images = np.stack([kinds[i % len(kinds)][i] for i in range(count)])
    rounded = np.arange(count) // len(kinds) % 2 == 0
    found[rounded] = np.rint(found[rounded] * np.float32(255)) / np.float32(255)
    return found


def _folds(graph: GraphInfo, source: Checkpoint) -> Iterator[fx.GraphModule]:
    """Yield the folds that the graph may have been made from: one for each alignment that gives channels of its own."""
    if graph.name == DENSE:
        yield fold_dense(unmasked(source.net, path=source.net.path_names[0]))
        return
    seen: list[list[int]] = []
    for align in _ALIGNMENTS:
        keeps = padded_masks(source.net, path=graph.name, align=align)
        kept = [int(keep.sum()) for keep in keeps]
        if kept not in seen:
            seen.append(kept)
            yield fold(source, path=graph.name, keeps=keeps)
