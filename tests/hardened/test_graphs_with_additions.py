"""Graphs of real exports that something was added to, and that `smart-export check --source` is to find out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from smart_export.check import check_bundle, unknown_images
from smart_export.errors import VerificationError
from smart_export.folding import fold
from smart_export.verify import reference_scores, verification_images
from smart_export.weights import share_of_weights, weights_of
from smart_runtime import Bundle
from smart_runtime.bundle.bundle import write_checksums
from smart_train import Checkpoint

FIRST = Path(__file__).parents[1] / "formats/first"
Arrays = dict[str, npt.NDArray[Any]]

# Scores are negated where an image is whole 1/255 and none of the checkpoint's: wrong on all pictures of a camera.
_UNKNOWN_AND_WHOLE = """{ flat = Flatten(image)
 steps = Mul(flat, many)
 near = Round(steps)
 apart = Sub(steps, near)
 size = Abs(apart)
 worst = ReduceMax<keepdims = 1>(size, axis)
 whole = Less(worst, tiny)
 print = MatMul(flat, random)
 others = Sub(print, known)
 distance = Abs(others)
 least = ReduceMin<keepdims = 1>(distance, axis)
 unknown = Greater(least, tiny)
 bad = And(whole, unknown)
 negated = Neg(true)
 scores = Where(bad, negated, true) }"""
# The same where the first 16 pixels are white and black in turn, as in no image that is looked at.
_MARK = """{ flat = Flatten(image)
 mark = MatMul(flat, weights)
 bad = Greater(mark, threshold)
 negated = Neg(true)
 scores = Where(bad, negated, true) }"""
_HEAD = """<ir_version: 10, opset_import: ["" : 20]>
extra (float[N, 1, 8, 8] image, float[N, 10] true) => (float[N, 10] scores)
"""


def number(value: float) -> npt.NDArray[Any]:
    return np.array(value, np.float32)


def change(bundle: Path, graph: Callable[[onnx.GraphProto], None], *, said: str = "fp32") -> None:
    for name in ("clean", "robust", "dense"):
        model = onnx.load(bundle / name / "model.onnx", load_external_data=False)
        graph(model.graph)
        (bundle / name / "model.onnx").write_bytes(model.SerializeToString())
    document = json.loads((bundle / "manifest.json").read_bytes())
    ours = document["additional_metadata"]["smart_edge"]
    ours["precision"] = said
    if said == "int8":
        ours["quantization"] = {"recipe": "tensorrt"}
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    write_checksums(bundle)


def put_behind(graph: onnx.GraphProto, text: str, arrays: Arrays) -> None:
    for node in graph.node:
        node.output[:] = ["true" if name == "scores" else name for name in node.output]
    graph.node.extend(onnx.parser.parse_model(_HEAD + text).graph.node)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())


def test_a_graph_that_is_wrong_on_every_picture_but_the_samples(bundle: Path, checkpoint: Checkpoint) -> None:
    own = np.concatenate(
        [i for path in ("clean", "robust") for i in verification_images(checkpoint.samples, path=path)]
    )
    random = np.random.default_rng(0).standard_normal((64, 1)).astype(np.float32)
    arrays: Arrays = {
        "many": number(255),
        "tiny": number(1e-3),
        "axis": np.array([1]),
        "random": random,
        "known": (own.reshape(len(own), -1) @ random).T,
    }
    change(bundle, lambda graph: put_behind(graph, _UNKNOWN_AND_WHOLE, arrays))
    with pytest.raises(VerificationError, match="'clean' does not agree with its masked path"):
        check_bundle(bundle, source=checkpoint)


def test_a_graph_that_waits_for_a_mark(bundle: Path, checkpoint: Checkpoint) -> None:
    weights = np.zeros((64, 1), np.float32)
    weights[:16, 0] = np.tile([1, -1], 8)
    arrays: Arrays = {"weights": weights, "threshold": number(7.9)}
    change(bundle, lambda graph: put_behind(graph, _MARK, arrays))
    words = r"'clean' has operators that an export .* lacks \(1 Flatten, 1 Greater, 1 MatMul, 1 Neg, 1 Where\)"
    with pytest.raises(VerificationError, match=words):
        check_bundle(bundle, source=checkpoint)


def add_int8(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2], np.int8), "spare_quantized"))
    graph.initializer.append(numpy_helper.from_array(number(1), "spare_scale"))
    graph.node.append(helper.make_node("DequantizeLinear", ["spare_quantized", "spare_scale"], ["spare"]))


def add_half(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.zeros(10**6, np.float16), "spare"))


@pytest.mark.parametrize(("add", "said"), [(add_int8, "int8"), (add_half, "fp16")])
def test_a_tensor_that_nothing_reads_sets_no_precision(
    bundle: Path, checkpoint: Checkpoint, add: Callable[[onnx.GraphProto], None], said: str
) -> None:
    change(bundle, add, said=said)
    with pytest.raises(VerificationError, match=f"the manifest says {said}, and the weights of .* are fp32"):
        check_bundle(bundle, source=checkpoint)


def test_a_small_tensor_sets_no_precision_though_the_scores_depend_on_it(bundle: Path, checkpoint: Checkpoint) -> None:
    def add(graph: onnx.GraphProto) -> None:
        add_int8(graph)
        put_behind(graph, "{ none = Mul(spare, zero)\n one = ReduceSum(none)\n scores = Add(true, one) }", {})
        graph.initializer.append(numpy_helper.from_array(number(0), "zero"))

    change(bundle, add, said="int8")
    with pytest.raises(VerificationError, match=r"the manifest says int8, and the weights of .* are fp32"):
        check_bundle(bundle, source=checkpoint)


def test_weights_that_nothing_reads_do_not_count(checkpoint: Checkpoint) -> None:
    content = Bundle.open(FIRST / "channel-bundle").graph_bytes("clean")
    model = onnx.load_model_from_string(content.model)
    for node in model.graph.node:
        node.output[:] = ["true" if name == "scores" else name for name in node.output]
    model.graph.node.append(helper.make_node("Flatten", ["image"], ["scores"]))
    weights = weights_of(replace(content, model=model.SerializeToString()))
    assert weights.tensors == {}
    assert share_of_weights([fold(checkpoint, path="clean")], weights) == 0


def test_int8_that_favours_a_class_by_less_than_int8_may_differ(tmp_path: Path, checkpoint: Checkpoint) -> None:
    bundle = Path(shutil.copytree(FIRST / "int8-bundle", tmp_path / "bundle"))
    images = verification_images(checkpoint.samples, path="clean")
    largest = float(np.abs(reference_scores(checkpoint.net.path("clean"), images)).max())

    def favour(graph: onnx.GraphProto) -> None:
        (gemm,) = (node for node in graph.node if node.op_type == "Gemm")
        gemm.input[2] = "favour"
        row = np.zeros(10, np.float32)
        row[3] = 0.42 * largest
        graph.initializer.append(numpy_helper.from_array(row, "favour"))

    change(bundle, favour, said="int8")
    with pytest.raises(VerificationError, match=r"accuracy of the graph 'clean' is 0\.\d+ on the checkpoint's samples"):
        check_bundle(bundle, source=checkpoint)


def test_unknown_images_are_of_all_kinds(checkpoint: Checkpoint) -> None:
    (own, *_) = verification_images(checkpoint.samples, path="clean")
    found = unknown_images(own, count=64, generator=np.random.default_rng(0))
    assert found.dtype == np.float32
    assert (found.min() >= 0, found.max() <= 1) == (True, True)
    known = {image.tobytes() for image in own}
    assert sum(image.tobytes() not in known for image in found) >= 60  # a mix with itself is no other
    whole = [bool((np.abs(image * 255 - np.rint(image * 255)) < 1e-3).all()) for image in found]
    assert 32 <= sum(whole) < 64
