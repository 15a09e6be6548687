"""From a checkpoint to a bundle: fold, convert, verify, then write it whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from smart_devices import Target
from smart_devices.version import version
from smart_export.errors import ExportError
from smart_export.fold import affines_to_convolutions_, fold, fold_dense, padded_masks, unmasked
from smart_export.graph import GRAPH, INPUT, OUTPUT, WEIGHTS, Converter, save_graph
from smart_export.layers import NetworkCost, network_cost
from smart_export.publish import publish, staged
from smart_export.signing import public_half, sign_bundle_
from smart_export.timings import Stopwatch
from smart_export.verify import (
    RANDOM_IMAGES,
    Agreement,
    Images,
    agreement,
    engine_scores,
    reference_scores,
    require,
    verification_images,
)
from smart_runtime.bundle import CHECKSUMS, MANIFEST, SIGNATURE, Bundle, GraphBytes, write_checksums
from smart_runtime.checksums import parse_checksums
from smart_runtime.engines import AUTO, create_engine
from smart_runtime.errors import BundleError
from smart_runtime.files import list_files
from smart_runtime.manifest import DENSE, FORMAT_VERSION, InputSpec, OutputSpec
from smart_train import Checkpoint
from smart_train.accounting import Densities, LayerStructure, densities, structure_report

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRECISION = "fp32"
BASELINES = (DENSE, "none")
_DENSE_IMAGES = 16  # of each kind: it is there for its latency, and costs the most to run


@dataclass(frozen=True)
class ExportedGraph:
    """One graph as it stands in the bundle; file names are relative to it, ``bytes`` counts both files."""

    name: str
    file: str
    weights: str | None
    bytes: int
    cost: NetworkCost
    agreement: Agreement


@dataclass(frozen=True)
class BuildResult:
    """A written bundle.

    Attributes:
        bundle: its directory.
        target: the device it is for.
        paths: one graph a path.
        baseline: the unmasked network, or None.
        densities: how much each path uses.
        signer: the fingerprint of the key that signed it, None without one.
        seconds: what the build took.
    """

    bundle: Path
    target: Target
    paths: dict[str, ExportedGraph]
    baseline: ExportedGraph | None
    densities: Densities
    signer: str | None
    seconds: float


def _ignore(_: str) -> None:
    return


def build_bundle(
    checkpoint: Checkpoint,
    *,
    output: Path,
    target: Target,
    baseline: bool = True,
    default_path: str | None = None,
    extra_images: Images | None = None,
    random_images: int = RANDOM_IMAGES,
    force: bool = False,
    sign: Ed25519PrivateKey | None = None,
    on_step: Callable[[str], None] = _ignore,
    stopwatch: Stopwatch | None = None,
) -> BuildResult:
    """Write the bundle of ``checkpoint`` for ``target``.

    Every graph runs in ONNX Runtime against its masked path before the bundle appears under its name.

    Args:
        checkpoint: what to export.
        output: the bundle's directory.
        target: decides alignment and opset.
        baseline: add the unmasked network for comparison.
        default_path: the path a model starts on; the first one (clean) by default.
        extra_images: float32 (N, C, H, W) in [0, 1] to verify on beside the checkpoint's samples.
        random_images: how many images of noise to verify on beside them.
        force: replace a bundle that exists.
        sign: the key to sign it with, from `smart_export.signing.load_private_key`.
        on_step: called after each graph, with its name.
        stopwatch: told what each phase took.

    Raises:
        ExportError: if ``output`` cannot be used or has no room, or ``default_path`` is no path.
        VerificationError: if a graph does not agree with its path; nothing is left behind.
    """
    started = time.perf_counter()
    names = checkpoint.net.path_names
    default_path = default_path or names[0]
    if default_path not in names:
        raise ExportError(f"expected a default path out of {', '.join(names)}, got {default_path!r}; use one of them")
    check_output(output, force=force)
    stopwatch = stopwatch or Stopwatch()
    builder = _Builder(
        checkpoint, target=target, extra_images=extra_images, random_images=random_images, stopwatch=stopwatch
    )
    place = Path(os.path.abspath(output))  # noqa: PTH100  # unlike resolve, it leaves links alone; "." gets a name
    with staged(place) as staging:
        paths = {}
        for name in names:
            paths[name] = builder.path(name, staging)
            on_step(name)
        dense = None
        if baseline:
            dense = builder.dense(staging)
            on_step(DENSE)
        with stopwatch.phase("manifest and checksums"):
            manifest = builder.manifest(paths, dense, default_path=default_path)
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            write_checksums(staging)
            if sign is not None:
                sign_bundle_(staging, sign)
            # What cannot be read back, with the public half of its key, is not published.
            written = Bundle.open(staging, trust=None if sign is None else public_half(sign))
            written.verify()
        with stopwatch.phase("publish"):
            publish(staging, place, force=force)
    return BuildResult(
        bundle=output,
        target=target,
        paths=paths,
        baseline=dense,
        densities=builder.densities,
        signer=written.signer,
        seconds=time.perf_counter() - started,
    )


def check_output(output: Path, *, force: bool) -> None:
    """Raise ExportError unless a bundle may be written to ``output``."""
    if not output.parent.is_dir():
        raise ExportError(f"expected an existing folder for {output}, got none; create {output.parent} first")
    if not os.path.lexists(output):
        return
    if not force:
        raise ExportError(
            f"expected no file or folder {output}, got one; use --force to replace a bundle, or another -o"
        )
    if not _is_replaceable(output):
        raise ExportError(
            f"expected a bundle to replace at {output}, got something else, which stays as it is; use another -o"
        )


def _is_replaceable(output: Path) -> bool:
    """Whether ``output`` is an empty folder, or one with nothing but the files of a bundle, whole or damaged."""
    if output.is_symlink() or not output.is_dir():
        return False
    try:
        present = set(list_files(output)) - {CHECKSUMS, SIGNATURE}
        if not any(output.iterdir()):
            return True
        named = parse_checksums((output / CHECKSUMS).read_bytes())
    except (BundleError, OSError):
        return False
    return MANIFEST in named and present <= set(named)


class _Builder:
    """Makes the parts of one bundle."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        target: Target,
        extra_images: Images | None,
        random_images: int,
        stopwatch: Stopwatch,
    ) -> None:
        self._checkpoint = checkpoint
        self._target = target
        self._extra = extra_images
        self._random_images = random_images
        self._stopwatch = stopwatch
        self._align = target.profile.alignment(PRECISION)
        self._onnx = Converter(input_shape=checkpoint.input_shape, opset=target.profile.opset)
        with stopwatch.phase("count parameters"):
            self.densities = densities(checkpoint.net)

    def path(self, name: str, staging: Path) -> ExportedGraph:
        net = self._checkpoint.net
        masks = net.masks(name)
        keeps = padded_masks(net, path=name, align=self._align)
        with self._stopwatch.phase(f"{name}: fold"):
            folded = fold(net, path=name, keeps=keeps)
        return self._graph(
            name,
            folded,
            staging,
            reference=net.path(name),
            images=self._images(name),
            padding=self._padding(masks, keeps),
            structures={layer.name: layer for layer in structure_report(net, path=name)},
        )

    def dense(self, staging: Path) -> ExportedGraph:
        name = self._checkpoint.net.path_names[0]
        with self._stopwatch.phase(f"{DENSE}: fold"):
            reference = unmasked(self._checkpoint.net, path=name)
            folded = fold_dense(reference)
        images = [batch[:_DENSE_IMAGES] for batch in self._images(name)]
        return self._graph(DENSE, folded, staging, reference=reference, images=images, padding={}, structures={})

    def _images(self, path: str) -> list[Images]:
        batches = verification_images(
            self._checkpoint.samples,
            path=path,
            shape=self._checkpoint.input_shape,
            random_images=self._random_images,
        )
        return batches if self._extra is None else [*batches, self._extra]

    def _padding(self, masks: Sequence[Tensor], keeps: Sequence[Tensor]) -> dict[str, int]:
        padding: dict[str, int] = {}
        for group, mask, keep in zip(self._checkpoint.net.groups, masks, keeps, strict=True):
            for member in group.members:
                if member.axis != "in":
                    added = int(keep.sum() - mask.sum()) * member.indices.shape[1]
                    padding[member.module] = padding.get(member.module, 0) + added
        return padding

    def _graph(
        self,
        name: str,
        folded: fx.GraphModule,
        staging: Path,
        *,
        reference: nn.Module,
        images: Sequence[Images],
        padding: dict[str, int],
        structures: dict[str, LayerStructure],
    ) -> ExportedGraph:
        phase = self._stopwatch.phase
        with phase(f"{name}: count MACs"):
            cost = network_cost(
                folded,
                dense=self._checkpoint.net.path(self._checkpoint.net.path_names[0]),
                input_shape=self._checkpoint.input_shape,
                target=self._target,
                padding=padding,
                structures=structures,
            )
        if self._target.profile.kind == "cpu":
            affines_to_convolutions_(folded)
        with phase(f"{name}: convert to ONNX"):
            model = self._onnx(folded)
        directory = staging / name
        directory.mkdir()
        with phase(f"{name}: write"):
            save_graph(model, directory)
        external = (directory / WEIGHTS).exists()
        with phase(f"{name}: verify, reference"):
            expected = reference_scores(reference, images)
        with phase(f"{name}: verify, engine"):
            engine = create_engine(
                AUTO,
                GraphBytes(
                    model=(directory / GRAPH).read_bytes(),
                    weights=(directory / WEIGHTS).read_bytes() if external else None,
                    weights_name=WEIGHTS if external else None,
                ),
                inputs=self.input_spec,
                outputs=self.output_spec,
                threads=1,
            )
            got = engine_scores(engine, images)
            engine.close()
        found = agreement(expected, got)
        require(found, name=name)
        return ExportedGraph(
            name=name,
            file=f"{name}/{GRAPH}",
            weights=f"{name}/{WEIGHTS}" if external else None,
            bytes=sum(file.stat().st_size for file in directory.iterdir()),
            cost=cost,
            agreement=found,
        )

    @property
    def input_spec(self) -> InputSpec:
        channels, height, width = self._checkpoint.input_shape
        return InputSpec(name=INPUT, channels=channels, height=height, width=width)

    @property
    def output_spec(self) -> OutputSpec:
        return OutputSpec(name=OUTPUT, classes=len(self._checkpoint.class_names))

    def manifest(
        self, paths: dict[str, ExportedGraph], dense: ExportedGraph | None, *, default_path: str
    ) -> dict[str, Any]:
        """Return the package description that docs/formats.md lays down."""
        checkpoint = self._checkpoint
        channels, height, width = checkpoint.input_shape
        ours = {
            "format_version": FORMAT_VERSION,
            "created_by": f"smart-edge {version()}",
            "target": {"name": self._target.name, "profile": self._target.profile.name},
            "precision": PRECISION,
            "default_path": default_path,
            "input": {
                "name": INPUT,
                "dtype": "float32",
                "layout": "NCHW",
                "channels": channels,
                "height": height,
                "width": width,
                "range": [0.0, 1.0],
            },
            "output": {"name": OUTPUT, "classes": len(checkpoint.class_names)},
            "preprocessing": {
                "colour": {1: "L", 3: "RGB"}.get(channels),
                "resize": "shorter-side",
                "interpolation": "bilinear",
                "crop": "center",
            },
            "class_names": list(checkpoint.class_names),
            "paths": {name: self._path_record(graph) for name, graph in paths.items()},
            "baseline": None if dense is None else {"name": dense.name, **_graph_record(dense)},
            "training": checkpoint.training,
        }
        variant = {"ep": "CPUExecutionProvider", "executor_info": {"ort": {"model_file": GRAPH}}}
        return {
            "schema_version": "1.0",
            "package_name": f"{checkpoint.architecture}-smart",
            "package_version": version(),
            "components": {name: {"variants": {"cpu": {**variant, "variant_directory": name}}} for name in paths},
            "additional_metadata": {"smart_edge": ours},
        }

    def _path_record(self, graph: ExportedGraph) -> dict[str, Any]:
        return {
            "density": self.densities.kept[graph.name],
            "parameter_density": self.densities.parameters[graph.name],
            **_graph_record(graph),
            "metrics": self._checkpoint.metrics[graph.name],
        }


def _graph_record(graph: ExportedGraph) -> dict[str, Any]:
    return {
        "file": graph.file,
        "weights": graph.weights,
        "parameters": graph.cost.parameters,
        "macs": graph.cost.macs,
        "dense_macs": graph.cost.dense_macs,
        "bytes": graph.bytes,
        "tolerance": graph.agreement.tolerance,
        "max_rel_diff": graph.agreement.max_rel_diff,
        "argmax_agreement": graph.agreement.argmax_agreement,
        "layers": [asdict(layer) for layer in graph.cost.layers],
    }


def summary(result: BuildResult) -> dict[str, Any]:
    """Return what was built as plain values, for ``--json`` and tables."""

    def row(graph: ExportedGraph) -> dict[str, Any]:
        record = _graph_record(graph)
        del record["layers"]
        return {**record, "verified_on": graph.agreement.images}

    return {
        "bundle": str(result.bundle),
        "target": result.target.name,
        "profile": result.target.profile.name,
        "precision": PRECISION,
        "signed_by": result.signer,
        "seconds": result.seconds,
        "union_density": result.densities.union,
        "paths": {
            name: {
                "density": result.densities.kept[name],
                "parameter_density": result.densities.parameters[name],
                **row(graph),
            }
            for name, graph in result.paths.items()
        },
        "baseline": None if result.baseline is None else {"name": result.baseline.name, **row(result.baseline)},
    }
