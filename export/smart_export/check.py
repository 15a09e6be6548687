"""Check a bundle: its bytes, its graphs, and that they belong to a checkpoint."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnx

from smart_common.errors import shortened
from smart_export.errors import ExportError
from smart_export.evidence import divide
from smart_export.folding import unmasked
from smart_export.precision import MAX_TOLERANCE, TOLERANCES, Precision, check_precision
from smart_export.verify import (
    DENSE_IMAGES,
    Agreement,
    agreement,
    engine_scores,
    reference_scores,
    require,
    verification_images,
)
from smart_runtime.bundle.bundle import Bundle, GraphBytes
from smart_runtime.bundle.manifest import DENSE, GraphInfo
from smart_runtime.bundle.signatures import short_fingerprint
from smart_runtime.engines import REFERENCE_ENGINE, Engine, EngineOptions, create_engine
from smart_runtime.engines.onnx_weights import external_tensors
from smart_train import Checkpoint, load_checkpoint
from smart_train.checkpoint.format import check_source


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
                if not np.isfinite(opened.run(images)).all():
                    raise ExportError(f"{graph.file} gives scores that are not finite; export it again")
                findings.append(Finding(f"{graph.name}: run", "finite scores"))
                continue
            found = _agreement(opened, graph, source, precision=check_precision(manifest.precision))
        finally:
            opened.close()
        require(found, name=graph.name)
        agreements[graph.name] = found
        detail = f"{found.images} images, difference {found.max_rel_diff:.1e}, all classes equal"
        findings.append(Finding(f"{graph.name}: agrees with the source", detail))
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


def _agreement(engine: Engine, graph: GraphInfo, source: Checkpoint, *, precision: Precision) -> Agreement:
    dense = graph.name == DENSE
    name = source.net.path_names[0] if dense else graph.name
    reference = unmasked(source.net, path=name) if dense else source.net.path(name)
    tolerance = TOLERANCES[precision]
    if tolerance is None:
        tolerance = graph.tolerance
    elif graph.tolerance is not None:  # of a deep network, which rounds more; a stranger may write any number
        tolerance = max(tolerance, min(graph.tolerance, MAX_TOLERANCE))
    if tolerance is None:
        raise ExportError(f"no tolerance of the {precision} graph {graph.file} in the manifest; export it again")
    judging, _ = divide(source, precision=precision)  # part of what the export looked at, whatever judged there
    images = verification_images(judging.samples, path=name, most=DENSE_IMAGES if dense else None)
    return agreement(reference_scores(reference, images), engine_scores(engine, images), tolerance=tolerance)
