"""The bundle: what it says is so, it opens everywhere, and it appears whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from smart_devices import resolve_target
from smart_export import BuildResult, ExportError, VerificationError, build_bundle, fold
from smart_runtime import SmartModel
from smart_runtime.bundle.bundle import Bundle
from smart_train import Checkpoint
from smart_train.accuracy import to_tensor

CPU = "cpu"


def macs_and_parameters(file: Path) -> tuple[int, int]:
    """Count from the ONNX graph alone: an oracle that knows nothing of torch modules."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(file)))
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.value_info, *model.graph.output)
    }
    weights = {w.name: list(w.dims) for w in model.graph.initializer}
    macs = parameters = 0
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm"}:
            continue
        weight = weights[node.input[1]]
        parameters += sum(int(np.prod(weights[name])) for name in node.input[1:] if name)
        if node.op_type == "Conv":
            macs += int(np.prod(shapes[node.output[0]][2:])) * int(np.prod(weight))
        else:
            macs += int(np.prod(weight))
    return macs, parameters


@pytest.mark.parametrize("name", ["clean", "robust", "dense"])
def test_macs_parameters_and_bytes_are_those_of_the_graph(bundle: Path, name: str) -> None:
    graph = Bundle.open(bundle).manifest.graph(name)
    assert (graph.macs, graph.parameters) == macs_and_parameters(bundle / graph.file)
    assert graph.bytes == sum((bundle / file).stat().st_size for file in graph.files)
    assert sum(layer["macs"] for layer in graph.layers) == graph.macs
    assert sum(layer["bytes"] for layer in graph.layers) == 4 * graph.parameters


def test_the_manifest_says_what_was_built(built: BuildResult, checkpoint: Checkpoint) -> None:
    manifest = Bundle.open(built.bundle).manifest
    assert (manifest.target.name, manifest.target.profile) == ("jetson-orin", "jetson-agx-orin-64gb")
    assert manifest.default_path == "clean"
    assert manifest.input.shape == checkpoint.input_shape == (1, 8, 8)
    assert manifest.class_names == tuple(str(i) for i in range(10))
    assert manifest.preprocessing.colour == "L"
    for path in ("clean", "robust"):
        graph = manifest.paths[path]
        assert graph.density == 0.5
        assert graph.tolerance == 1e-4
        assert graph.argmax_agreement == 1.0
        assert graph.metrics is not None
        assert graph.metrics["split"] == "test"
        first = next(layer for layer in graph.layers if layer["name"] == "blocks.0.conv1")
        assert (first["out_channels"], first["dense_out_channels"], first["padded_out_channels"]) == (4, 8, 0)
    assert manifest.training["data"]["kind"] == "digits"


def test_padding_to_the_target_changes_nothing(padded_build: BuildResult) -> None:
    assert padded_build.paths["clean"].agreement.max_rel_diff <= 1e-5
    assert Bundle.open(padded_build.bundle).manifest.baseline is None


def test_onnx_runtimes_own_package_reader_runs_both_paths(bundle: Path, checkpoint: Checkpoint) -> None:
    context = onnxruntime.ModelPackageContext(str(bundle))
    images = to_tensor(checkpoint.samples.images[:8])
    for path in ("clean", "robust"):
        options = onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions())
        session = context.select_component(path, options).create_session(None)
        scores = session.run(["scores"], {"image": images.numpy()})[0]
        with torch.no_grad():
            expected = checkpoint.net.path(path)(images).numpy()
        assert np.abs(scores - expected).max() / max(1, np.abs(expected).max()) <= 1e-4


def test_the_runtime_answers_like_the_masked_paths(bundle: Path, checkpoint: Checkpoint) -> None:
    with SmartModel.load(bundle) as model:
        for path in ("clean", "robust", "clean"):
            model.path = path
            result = model.run(checkpoint.samples.images.numpy())
            with torch.no_grad():
                expected = checkpoint.net.path(path)(to_tensor(checkpoint.samples.images)).numpy()
            assert result.path == path
            assert np.abs(result.scores - expected).max() / max(1, np.abs(expected).max()) <= 1e-4


@pytest.mark.parametrize(
    ("stage", "words"),
    [("fold", "is not the network it was made from"), ("graph", "does not agree with its masked path")],
)
def test_a_graph_that_disagrees_is_refused_and_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, words: str
) -> None:
    def spoil(module: nn.Module) -> None:
        with torch.no_grad():
            next(module.parameters()).mul_(1.01)  # one layer one percent off

    def wrong(*args: object, **kwargs: object) -> nn.Module:
        module = fold(*args, **kwargs)  # type: ignore[arg-type]
        spoil(module)
        return module

    if stage == "fold":
        monkeypatch.setattr("smart_export.stages.fold", wrong)
    else:  # after the fold is proved
        monkeypatch.setattr("smart_export.stages.affines_to_convolutions_", spoil)
    with pytest.raises(VerificationError, match=words):
        build_bundle(checkpoint, output=tmp_path / "bundle", target=resolve_target(CPU))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_only_by_force_and_anything_else_never(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    target = resolve_target(CPU)
    build_bundle(checkpoint, output=output, target=target, baseline=False)
    before = Bundle.open(output).digest
    with pytest.raises(ExportError, match="--force"):
        build_bundle(checkpoint, output=output, target=target)
    assert Bundle.open(output).digest == before
    build_bundle(checkpoint, output=output, target=target, default_path="robust", force=True)
    assert Bundle.open(output).manifest.default_path == "robust"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    foreign = tmp_path / "web"
    foreign.mkdir()
    (foreign / "picture.jpg").write_bytes(b"precious")
    (foreign / "manifest.json").write_text('{"name": "somebody else\'s"}')
    with pytest.raises(ExportError, match="stays as it is"):
        build_bundle(checkpoint, output=foreign, target=target, force=True)
    assert (foreign / "picture.jpg").read_bytes() == b"precious"
    (output / "clean/model.onnx").unlink()  # a damaged bundle may be replaced
    build_bundle(checkpoint, output=output, target=target, baseline=False, force=True)
    (output / "notes.txt").write_text("mine")  # one with somebody's own file in it may not
    with pytest.raises(ExportError, match="stays as it is"):
        build_bundle(checkpoint, output=output, target=target, force=True)
    assert (output / "notes.txt").read_text() == "mine"


def test_bad_places_and_paths_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^no folder .*such for bundle"):
        build_bundle(checkpoint, output=tmp_path / "no/such/bundle", target=resolve_target(CPU))
    with pytest.raises(ExportError, match="clean, robust"):
        build_bundle(checkpoint, output=tmp_path / "b", target=resolve_target(CPU), default_path="dense")


def test_the_training_record_in_the_manifest_holds_no_path(bundle: Path) -> None:
    record = json.dumps(json.loads((bundle / "manifest.json").read_text())["additional_metadata"])
    assert os.sep + "tmp" not in record
    assert str(Path.home()) not in record
