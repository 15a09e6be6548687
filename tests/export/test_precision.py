"""fp16 and int8 graphs: their types and zeros, what the manifest says of them, and int8 against plain NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from reference import quantise as oracle
from smart_devices import resolve_target
from smart_export import BuildResult, ExportError, VerificationError, build_bundle
from smart_export.check import check_bundle
from smart_export.precision import TOLERANCES
from smart_export.quantise import RecipeName, quantised
from smart_runtime import SmartModel
from smart_runtime.bundle.bundle import Bundle
from smart_train import Checkpoint, load_checkpoint
from smart_train.accuracy import to_tensor

Build = Callable[[str, str], BuildResult]
REDUCED = [("cpu", "fp16"), ("cpu", "int8"), ("jetson-orin", "int8")]  # fp16 is the same for both


@pytest.fixture(scope="session")
def build(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build once a session for each target and precision; two epochs of training leave accuracies that move easily."""
    done: dict[tuple[str, str], BuildResult] = {}
    folder = tmp_path_factory.mktemp("precisions")

    def make(target: str, precision: str) -> BuildResult:
        key = (target, precision)
        if key not in done:
            done[key] = build_bundle(
                load_checkpoint(checkpoint_file),
                output=folder / f"{target}-{precision}",
                target=resolve_target(target),
                precision=precision,
                max_drop=0.2,
            )
        return done[key]

    return make


HAS_VNNI = "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def graph_of(built: BuildResult, name: str) -> onnx.ModelProto:
    return onnx.load(str(built.bundle / name / "model.onnx"))  # with its external weights


@pytest.mark.parametrize(("target", "precision"), REDUCED)
def test_the_runtime_answers_like_the_masked_paths(
    build: Build, checkpoint: Checkpoint, target: str, precision: str
) -> None:
    images = checkpoint.samples.images
    with SmartModel.load(build(target, precision).bundle) as model:
        for path in ("clean", "robust"):
            model.path = path
            scores = model(images.numpy())
            with torch.no_grad():
                expected = checkpoint.net.path(path)(to_tensor(images)).numpy()
            assert scores.dtype == np.float32
            # Of int8: 256 steps, six layers deep; without VNNI ONNX Runtime's kernels also cut some sums off at 16 bits
            # (docs/precision.md).
            worst = {"fp16": 2e-3, "int8": 0.15 if HAS_VNNI else 0.5}[precision]
            assert np.abs(scores - expected).max() / max(1, np.abs(expected).max()) < worst


@pytest.mark.parametrize(("target", "precision"), REDUCED)
@pytest.mark.parametrize("name", ["clean", "dense"])
def test_what_a_graph_is_made_of(build: Build, name: str, target: str, precision: str) -> None:
    model = graph_of(build(target, precision), name)
    (image,), (scores,) = model.graph.input, model.graph.output
    assert (image.type.tensor_type.elem_type, scores.type.tensor_type.elem_type) == (TensorProto.FLOAT,) * 2
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert not model.metadata_props
    assert b"/" not in model.producer_name.encode()
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    weighted = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert len(weighted) == 9 + 1
    used = {name for node in model.graph.node for name in node.input}
    assert stored.keys() <= used, "a tensor that nothing reads"
    if precision == "fp16":
        assert {tensor.data_type for tensor in stored.values()} <= {TensorProto.FLOAT16, TensorProto.INT64}
        assert [node.op_type for node in model.graph.node].count("Cast") == 2
        return
    for node in weighted:
        weight = producers[node.input[1]]
        values, scales, zeros = (stored[name] for name in weight.input)
        assert (weight.op_type, values.data_type) == ("DequantizeLinear", TensorProto.INT8)
        assert numpy_helper.to_array(scales).shape == (values.dims[0],), "a scale for each output channel"
        assert not numpy_helper.to_array(zeros).any()
        assert producers[node.input[0]].op_type == "DequantizeLinear"
        bias = node.input[2]
        if target == "cpu":
            assert stored[producers[bias].input[0]].data_type == TensorProto.INT32
        else:
            assert stored[bias].data_type == TensorProto.FLOAT
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    kinds = {
        (stored[node.input[2]].data_type, int(numpy_helper.to_array(stored[node.input[2]]) == 0)) for node in quantisers
    }
    if target == "cpu":
        assert {kind for kind, _ in kinds} == {TensorProto.UINT8}
    else:
        assert kinds == {(TensorProto.INT8, True)}, "symmetric"
        readers = {name: node for node in model.graph.node for name in node.input}
        followers = {readers[readers[node.output[0]].output[0]].op_type for node in quantisers}
        assert followers <= {"Conv", "Gemm", "Add"}
    assert producers[scores.name].op_type == "Gemm", "scores are not quantised"


@pytest.mark.parametrize(("target", "precision"), REDUCED)
def test_the_manifest_says_what_was_built(build: Build, target: str, precision: str) -> None:
    built = build(target, precision)
    manifest = Bundle.open(built.bundle).manifest
    assert (manifest.precision, manifest.target.kind) == (precision, {"cpu": "cpu"}.get(target, "jetson"))
    for graph in manifest.graphs:
        expected = TOLERANCES[built.precision]
        assert graph.max_rel_diff is not None
        assert graph.tolerance == (2 * graph.max_rel_diff if expected is None else expected)
        assert graph.max_rel_diff > 1e-6, "it is fp32"
        assert graph.bytes < 0.75 * Bundle.open(build(target, "fp32").bundle).manifest.graph(graph.name).bytes
        model = onnx.load(str(built.bundle / graph.file), load_external_data=False)
        size, bias_size = {"fp16": (2, 2), "int8": (1, 4)}[precision]
        biases = sum(layer["out_channels"] for layer in graph.layers)
        weights = sum(layer["weights"] for layer in graph.layers)
        assert sum(layer["bytes"] for layer in graph.layers) == size * weights + bias_size * biases
        external = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
        assert external, "weights lie in their own file"
    if precision == "int8":
        assert manifest.recipe == {"cpu": "cpu"}.get(target, "tensorrt")
        assert manifest.quantization is not None
        assert manifest.quantization["calibration"]["images"] == 128
        assert manifest.quantization["library"].startswith("onnxruntime ")
        first = next(layer for layer in manifest.graph("clean").layers if layer["name"] == "blocks.2.conv1")
        assert first["out_channels"] == {"cpu": 16}.get(target, 32), "int8 wants 32 channels on TensorRT"
    else:
        assert (manifest.recipe, manifest.quantization) == (None, None)


@pytest.mark.parametrize(("target", "precision"), REDUCED)
def test_a_check_knows_the_source_again(
    build: Build, checkpoint: Checkpoint, other_checkpoint_file: Path, target: str, precision: str
) -> None:
    bundle = Bundle.open(build(target, precision).bundle)
    found = check_bundle(bundle, source=checkpoint)
    assert found.agreements.keys() == {"clean", "robust", "dense"}
    with pytest.raises(VerificationError, match="agree with its masked path"):
        check_bundle(bundle, source=load_checkpoint(other_checkpoint_file))


def test_the_same_bytes_in_another_process(build: Build, checkpoint_file: Path, tmp_path: Path) -> None:
    """The library walks through sets of names, whose order depends on the process."""
    command = [sys.executable, "-m", "smart_export.cli", str(checkpoint_file), "--target", "cpu"]
    options = ["--precision", "int8", "--max-drop", "20", "-o", str(tmp_path / "b")]
    environment = os.environ | {"PYTHONHASHSEED": "77", "TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, *options], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    assert "int8 for cpu, each path passed the accuracy gate" in " ".join(done.stdout.split())
    assert Bundle.open(tmp_path / "b").digest == Bundle.open(build("cpu", "int8").bundle).digest


def test_a_precision_that_is_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown precision 'bf16'; did you mean fp16"):
        build_bundle(checkpoint, output=tmp_path / "b", target=resolve_target("cpu"), precision="bf16")


def int8_convolution(weight: np.ndarray, bias: np.ndarray, images: np.ndarray, recipe: RecipeName) -> onnx.ModelProto:
    """One layer, so that every number of its int8 graph can be computed by hand."""
    shape = ["N", *images.shape[1:]]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w", "b"], ["scores"], name="conv", pads=[weight.shape[2] // 2] * 4)],
        "convolution",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(weight), *images.shape[2:]])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = quantised(ir.from_proto(model), images, recipe=recipe, method="minmax")
    result: onnx.ModelProto = ir.to_proto(made)
    return result


@pytest.mark.parametrize("recipe", ["tensorrt", "cpu"])
def test_one_convolution_by_hand(recipe: RecipeName) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(5, 3, 3, 3)) * np.array([1, 10, 0.1, 1, 1]).reshape(5, 1, 1, 1)).astype(np.float32)
    weight[3] = 0  # a channel of zeros, as padding leaves it
    bias = rng.normal(size=5).astype(np.float32)
    images = rng.random((40, 3, 6, 4), dtype=np.float32) * np.float32(0.9)
    model = int8_convolution(weight, bias, images, recipe)
    scales, seen = oracle.symmetric_per_channel(weight.astype(np.float64))
    if recipe == "tensorrt":
        scale, rounded = oracle.symmetric(images.astype(np.float64))
    else:
        scale, _, rounded = oracle.asymmetric(images.astype(np.float64))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    by_output = {node.output[0]: node for node in model.graph.node}
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    np.testing.assert_allclose(stored[by_output[conv.input[1]].input[1]], scales, rtol=1e-6)
    np.testing.assert_allclose(stored[by_output[conv.input[0]].input[1]], scale, rtol=1e-6)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"image": images})[0]
    exact = [array.astype(np.float64) for array in (images, weight, bias)]
    expected = oracle.convolution(rounded, seen, exact[2])
    step = 0 if recipe == "tensorrt" else scale * scales.max()  # of the int32 bias
    np.testing.assert_allclose(got, expected, atol=step / 2 + 1e-4)
    assert np.abs(expected - oracle.convolution(*exact)).max() > 1e-3, "it was rounded"


def test_what_the_library_cannot_do_is_one_sentence() -> None:
    with pytest.raises(ExportError, match=r"onnxruntime\.quantization cannot bring the graph to int8 \("):
        int8_convolution(
            np.ones((1, 3, 1, 1), np.float32), np.zeros(1, np.float32), np.zeros((1, 4, 2, 2), np.float32), "cpu"
        )


@given(st.data())
@settings(max_examples=15)
def test_zeros_stay_exactly_zero(data: st.DataObject) -> None:
    """In any pattern, beside weights however small: those in 2:4 stay 2:4, dropped channels stay nothing."""
    seed = data.draw(st.integers(0, 2**16))
    recipe: RecipeName = data.draw(st.sampled_from(["tensorrt", "cpu"]))
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(4, 8, 3, 3)) * 10 ** data.draw(st.floats(-6, 3))).astype(np.float32)
    mask = rng.random(weight.shape) < data.draw(st.sampled_from([0.0, 0.5, 0.9]))
    mask[data.draw(st.integers(0, 3))] = False
    weight *= mask
    images = rng.random((4, 8, 4, 4), dtype=np.float32)
    model = int8_convolution(weight, np.zeros(4, np.float32), images, recipe)
    (stored,) = (
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    )
    assert not stored[~mask].any()
    nonzero = np.abs(weight) > np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    assert stored[nonzero].all()
