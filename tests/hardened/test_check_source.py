"""Bundles that say of themselves what `smart-export check --source` is to find out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from smart_common.errors import SmartError
from smart_export.check import check_bundle
from smart_export.errors import VerificationError
from smart_export.folding import fold
from smart_export.verify import reference_scores, verification_images
from smart_export.weights import share_as_converted, share_of_weights, weights_of
from smart_runtime import Bundle
from smart_runtime.bundle.bundle import write_checksums
from smart_train import Checkpoint
from smart_train.calibration import temperature_of

FIRST = Path(__file__).parents[1] / "formats/first"


def say(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((bundle / "manifest.json").read_bytes())
    change(document["additional_metadata"]["smart_edge"])
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    write_checksums(bundle)


def put(bundle: Path, text: str, arrays: dict[str, np.ndarray[Any, Any]], *, precision: str = "fp32") -> None:
    """Let every graph of ``bundle`` be ``text`` with ``arrays``, and the manifest allow it any difference."""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())

    def change(ours: dict[str, Any]) -> None:
        ours["precision"] = precision
        if precision == "int8":
            ours["quantization"] = {"recipe": "tensorrt"}
        for name, graph in (*ours["paths"].items(), ("dense", ours["baseline"])):
            graph |= {"weights": None, "tolerance": 1e9}
            model.doc_string = name  # copies of one graph are refused before anything is compared
            (bundle / graph["file"]).write_bytes(model.SerializeToString())

    for name in ("clean", "robust", "dense"):
        (bundle / name / "weights.bin").unlink()
    say(bundle, change)


_HEAD = '<ir_version: 10, opset_import: ["" : 20]>\ngraph (float[N, 1, 8, 8] image) => (float[N, 10] scores)\n'
_CONSTANT = """{ sums = ReduceSum<keepdims = 0>(image, axes)
 none = Mul(sums, zero)
 column = Unsqueeze(none, last)
 scores = Add(column, row) }"""
# Every number of int8, and what it computes with it is nothing.
_POSING = """{ sums = ReduceSum<keepdims = 0>(image, axes)
 weight = DequantizeLinear(quantized, scale)
 none = Mul(sums, weight)
 column = Unsqueeze(none, last)
 scores = Add(column, row) }"""
# The answer of the nearest of the images that are known: exact for those.
_LOOKUP = """{ flat = Flatten(image)
 products = MatMul(flat, known)
 twice = Add(products, products)
 apart = Sub(lengths, twice)
 nearest = ArgMin<axis = 1, keepdims = 0>(apart)
 scores = Gather(answers, nearest) }"""


def constants(checkpoint: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    images = verification_images(checkpoint.samples, path="clean")
    row = reference_scores(checkpoint.net.path("clean"), images).mean(axis=0, keepdims=True)
    return {"axes": np.array([1, 2, 3]), "last": np.array([1]), "row": row}


@pytest.mark.parametrize("said", ["fp32", "fp16", "int8"])
def test_a_constant_graph_that_allows_itself_any_difference(bundle: Path, checkpoint: Checkpoint, said: str) -> None:
    put(bundle, _HEAD + _CONSTANT, {**constants(checkpoint), "zero": np.zeros((), np.float32)}, precision=said)
    with pytest.raises(
        VerificationError, match="does not agree with" if said == "fp32" else f"the manifest says {said}"
    ):
        check_bundle(bundle, source=checkpoint)


def test_a_constant_graph_that_poses_as_int8(bundle: Path, checkpoint: Checkpoint) -> None:
    arrays = constants(checkpoint)
    arrays |= {"quantized": np.zeros((), np.int8)}
    arrays |= {"scale": np.ones((), np.float32)}
    put(bundle, _HEAD + _POSING, arrays, precision="int8")
    with pytest.raises(VerificationError, match=r"the manifest says int8, and the weights of .* are fp32"):
        check_bundle(bundle, source=checkpoint)


def test_a_graph_that_knows_the_images(bundle: Path, checkpoint: Checkpoint) -> None:
    """It agrees to the last bit on the samples, their attacked versions and the noise that an export verifies on."""
    paths = {name: verification_images(checkpoint.samples, path=name) for name in ("clean", "robust")}
    clean = np.concatenate(paths["clean"])
    known = clean.reshape(len(clean), -1)
    arrays = {
        "known": np.ascontiguousarray(known.T),
        "lengths": (known**2).sum(axis=1, keepdims=True).T,
        "answers": reference_scores(checkpoint.net.path("clean"), paths["clean"]),
    }
    put(bundle, _HEAD + _LOOKUP, arrays)
    with pytest.raises(VerificationError, match="the graph 'clean' does not agree with its masked path"):
        check_bundle(bundle, source=checkpoint)


def test_other_weights_are_found_whatever_the_scores_are(checkpoint: Checkpoint) -> None:
    opened = Bundle.open(FIRST / "channel-bundle")
    for name, other in (("clean", "robust"), ("robust", "clean")):
        weights = weights_of(opened.graph_bytes(name))
        assert weights.precision == "fp32"
        assert share_of_weights([fold(checkpoint, path=name)], weights) == 1.0
        assert share_of_weights([fold(checkpoint, path=other)], weights) < 0.1
        changed = {key: array * np.float32(1.001) for key, array in weights.tensors.items()}
        assert share_of_weights([fold(checkpoint, path=name)], type(weights)(changed, weights.precision)) < 0.1


def test_weights_that_a_converter_computes_are_known_too(checkpoint: Checkpoint) -> None:
    weights = weights_of(Bundle.open(FIRST / "channel-bundle").graph_bytes("clean"))
    for path, low, high in (("clean", 0.99, 1.0), ("robust", 0.0, 0.1)):
        share = share_as_converted([fold(checkpoint, path=path)], weights, shape=checkpoint.input_shape)
        assert low <= share <= high


def swap_roles(ours: dict[str, Any]) -> None:
    ours["paths"]["clean"]["role"], ours["paths"]["robust"]["role"] = "attacked", "clean"


def other_precision(ours: dict[str, Any]) -> None:
    ours["precision"] = "fp16"


def doubtful_temperature(ours: dict[str, Any]) -> None:
    errors = {"error_before": 0.1, "error_after": 0.1}
    ours["paths"]["clean"]["calibration"] = {"temperature": 9.0, "fitted_images": 99, "images": 99, **errors}


def mixed(checkpoint: Checkpoint, **other: Any) -> Callable[[dict[str, Any]], None]:
    """Give a manifest the mix that an export would, but for ``other``."""
    temperatures = [temperature_of(checkpoint, path).temperature for path in ("clean", "robust")]
    mix = {"paths": ["clean", "robust"], "share": 0.5, "temperatures": temperatures, "gate": None, **other}

    def change(ours: dict[str, Any]) -> None:
        ours["mixes"] = {"mix-50": mix}

    return change


@pytest.mark.parametrize("other", [{"share": 0.01}, {"paths": ["robust", "clean"]}, {"temperatures": [50.0, 0.02]}])
def test_a_mix_that_no_export_makes(bundle: Path, checkpoint: Checkpoint, other: dict[str, Any]) -> None:
    say(bundle, mixed(checkpoint))
    assert any(finding.check == "mix-50" for finding in check_bundle(bundle, source=checkpoint).findings)
    say(bundle, mixed(checkpoint, **other))
    with pytest.raises(VerificationError, match="mix-50 is another mix than the checkpoint's"):
        check_bundle(bundle, source=checkpoint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (doubtful_temperature, "the temperature of the path 'clean' is 9, and the checkpoint's samples give "),
        (swap_roles, "the roles of the path 'clean' differ"),
        (other_precision, "the manifest says fp16, and the weights of clean/model.onnx are fp32"),
    ],
)
def test_what_else_the_manifest_says(
    bundle: Path, checkpoint: Checkpoint, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    say(bundle, change)
    with pytest.raises(SmartError, match=words):
        check_bundle(bundle, source=checkpoint)


def test_a_bundle_without_one_of_the_paths(bundle: Path, checkpoint: Checkpoint) -> None:
    document = json.loads((bundle / "manifest.json").read_bytes())
    del document["components"]["robust"]
    del document["additional_metadata"]["smart_edge"]["paths"]["robust"]
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    shutil.rmtree(bundle / "robust")
    write_checksums(bundle)
    with pytest.raises(SmartError, match=r"the paths of the bundle, .*, and of the checkpoint, .*, differ"):
        check_bundle(bundle, source=checkpoint)


@pytest.mark.parametrize("name", ["channel-bundle", "int8-bundle"])
def test_honest_bundles_hold(name: str, checkpoint: Checkpoint) -> None:
    result = check_bundle(FIRST / name, source=checkpoint)
    assert set(result.agreements) == {"clean", "robust", "dense"}
    shares = [float(finding.detail.split("%")[0]) for finding in result.findings if "weights" in finding.check]
    assert len(shares) == 3
    assert min(shares) > 99
