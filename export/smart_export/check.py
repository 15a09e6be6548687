"""Check a bundle: its bytes, its graphs, and that they belong to a checkpoint."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from torch import fx

from smart_common.errors import shortened
from smart_export.errors import ExportError, VerificationError
from smart_export.evidence import divide
from smart_export.folding import fold, fold_dense, padded_masks, unmasked
from smart_export.precision import INT8, TOLERANCE_INT8, Precision, tolerance_for
from smart_export.proof import rounding_of
from smart_export.verify import (
    DENSE_IMAGES,
    RANDOM_IMAGES,
    Agreement,
    Images,
    agreement,
    engine_scores,
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
from smart_runtime.bundle.bundle import Bundle, GraphBytes
from smart_runtime.bundle.manifest import DENSE, GraphInfo, Manifest
from smart_runtime.bundle.signatures import short_fingerprint
from smart_runtime.engines import REFERENCE_ENGINE, Engine, EngineOptions, create_engine
from smart_runtime.engines.onnx_weights import external_tensors
from smart_runtime.outputs import check_scores
from smart_train import Checkpoint, load_checkpoint
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
    agreements: dict[str, Agreement]


def check_bundle(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    source: str | os.PathLike[str] | Checkpoint | None = None,
    engine: str = REFERENCE_ENGINE,
) -> CheckResult:
    """Check every byte, every graph with onnx.checker, a run of each on ``engine``, and agreement with ``source``.

    Args:
        bundle: one that is open, or its directory.
        source: the checkpoint that it was exported from, or its file.
        engine: what runs the graphs; the reference engine unless told otherwise.

    Raises:
        BundleError: if a file is missing, extra or changed.
        CheckpointError: if there is no checkpoint in the file ``source``.
        EngineError: if a graph is no plain one, or the engine refuses it.
        ExportError: if a graph is not valid ONNX.
        ConfigError: if ``source`` has another input shape, other classes or paths.
        VerificationError: if a graph does not compute what its path of ``source`` computes.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    source = load_checkpoint(source) if isinstance(source, str | os.PathLike) else source
    bundle.verify()
    findings = [Finding("checksums", f"{len(bundle.sums)} files are as exported"), Finding("manifest", "well formed")]
    if bundle.signer is not None:
        findings.append(Finding("signature", f"by the key {short_fingerprint(bundle.signer)}"))
    if source is not None:
        check_source(bundle.manifest, source)
        _check_roles(bundle.manifest, source)
    agreements: dict[str, Agreement] = {}
    manifest = bundle.manifest
    for graph in (*manifest.paths.values(), *([] if manifest.baseline is None else [manifest.baseline])):
        content = bundle.graph_bytes(graph.name)
        external_tensors(content)  # first: onnx's checker expands functions and follows them into each other
        _check_onnx(graph, content)
        findings.append(Finding(f"{graph.name}: ONNX", "onnx.checker full check passes"))
        opened = create_engine(
            engine, content, inputs=manifest.input, outputs=manifest.output, options=EngineOptions(threads=1)
        )
        try:
            if source is None:
                images = np.random.default_rng(0).random((2, *manifest.input.shape), dtype=np.float32)
                scores = opened.run(images)
                check_scores(scores, images=len(images), classes=manifest.output.classes, name=graph.name)
                findings.append(Finding(f"{graph.name}: run", "finite scores"))
                continue
            weights = weights_of(content)
            _check_said_precision(graph, weights, said=manifest.precision)
            found = _agreement(opened, graph, source, precision=weights.precision)
        finally:
            opened.close()
        require(found, name=graph.name)
        share = share_of_weights(_folds(graph, source), weights)
        if share < LEAST_SHARE:
            share = max(share, share_as_converted(_folds(graph, source), weights, shape=source.input_shape))
        require_weights(share, name=graph.name)
        agreements[graph.name] = found
        detail = f"{found.images} images, difference {found.max_rel_diff:.1e}, all classes equal"
        findings.append(Finding(f"{graph.name}: agrees with the source", detail))
        findings.append(Finding(f"{graph.name}: weights", f"{share:.1%} of the source's are in the graph"))
    return CheckResult(tuple(findings), agreements)


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


def _agreement(engine: Engine, graph: GraphInfo, source: Checkpoint, *, precision: Precision) -> Agreement:
    """Compare the scores of a graph; what they may differ by is known here, whatever the manifest says of it.

    On the checkpoint's own images, and on others that nobody can have known: between those and noise, new each time.
    """
    dense = graph.name == DENSE
    name = source.net.path_names[0] if dense else graph.name
    reference = unmasked(source.net, path=name) if dense else source.net.path(name)
    judging, _ = divide(source, precision=precision)  # part of what the export looked at, whatever judged there
    own = verification_images(judging.samples, path=name, random_images=0, most=DENSE_IMAGES if dense else None)[:2]
    images = [*own, _unknown_images(own[0], count=DENSE_IMAGES if dense else RANDOM_IMAGES)]
    tolerance = TOLERANCE_INT8
    if precision != INT8:  # a deep network rounds more, and how much its own float64 says
        tolerance = tolerance_for(precision, rounding=rounding_of(reference, images)) or 0.0
    got = engine_scores(engine, images, classes=len(source.class_names), name=graph.name)
    return agreement(reference_scores(reference, images), got, tolerance=tolerance)


def _unknown_images(own: Images, *, count: int) -> Images:
    """Return ``count`` images like ``own``, float32 (N, C, H, W), each more or less drowned in noise."""
    generator = np.random.default_rng()  # no seed: a graph that knows the images beforehand is to be found
    chosen = own[generator.integers(0, len(own), count)]
    clear = generator.random((count, 1, 1, 1), dtype=np.float32)
    mixed: Images = clear * chosen + (1 - clear) * generator.random(chosen.shape, dtype=np.float32)
    return mixed


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
