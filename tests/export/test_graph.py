"""The ONNX files: plain, valid, of a free batch size, and without a trace of the machine."""

from __future__ import annotations

import getpass
import hashlib
import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.rtx import assert_builds
from smart_devices import resolve_target
from smart_export import build_bundle
from smart_train import Checkpoint

GRAPHS = ["clean", "robust", "dense"]
ALLOWED = {"Conv", "Relu", "Add", "Sub", "Div", "ReduceMean", "Gemm"}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_full_checker_passes_and_nothing_but_plain_operators_is_left(bundle: Path, name: str) -> None:
    file = bundle / name / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(str(file))
    assert {node.op_type for node in model.graph.node} <= ALLOWED
    assert [opset.version for opset in model.opset_import if opset.domain in {"", "ai.onnx"}] == [20]
    image, scores = model.graph.input[0], model.graph.output[0]
    assert (image.name, scores.name) == ("image", "scores")
    assert [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert [d.dim_value or d.dim_param for d in scores.type.tensor_type.shape.dim] == ["batch", 10]


@pytest.mark.parametrize("name", GRAPHS)
def test_no_metadata_is_left(bundle: Path, name: str) -> None:
    model = onnx.load(str(bundle / name / "model.onnx"), load_external_data=False)
    assert not model.metadata_props
    assert not model.doc_string
    for node in model.graph.node:
        assert not node.metadata_props
        assert not node.doc_string
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        assert not value.metadata_props
        assert not value.doc_string


def test_no_file_holds_a_path_of_this_machine(bundle: Path) -> None:
    here = Path(__file__).resolve()
    private = {
        str(here.parents[2]),
        str(Path.home()),
        f"/home/{getpass.getuser()}",
        tempfile.gettempdir(),
        "site-packages",
    }
    for file in sorted(p for p in bundle.rglob("*") if p.is_file()):
        data = file.read_bytes()
        for word in private:
            assert word.encode() not in data, f"{file.name} holds {word}"
        if file.suffix != ".bin":  # weights are random bytes and may look like anything
            assert not re.search(rb"(?:/[\w.-]+){2,}\.py", data), f"{file.name} holds the path of a Python file"


def test_the_batch_size_is_free_and_images_do_not_mix(bundle: Path) -> None:
    session = onnxruntime.InferenceSession(str(bundle / "robust/model.onnx"), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((9, 1, 8, 8), dtype=np.float32)
    whole = session.run(["scores"], {"image": images})[0]
    single = np.concatenate([session.run(["scores"], {"image": images[i : i + 1]})[0] for i in range(9)])
    assert np.abs(whole - single).max() <= 1e-5  # another blocking of the same float32 sums


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Checkpoint, bundle: Path, tmp_path: Path) -> None:
    again = build_bundle(checkpoint, output=tmp_path / "again", target=resolve_target("jetson-orin")).bundle

    def digests(root: Path) -> dict[str, str]:
        files = (p for p in root.rglob("*") if p.is_file())
        return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    assert digests(again) == digests(bundle)


@pytest.mark.trt
@pytest.mark.parametrize("name", GRAPHS)
def test_tensorrt_rtx_parses_and_builds_it_without_a_gpu(bundle: Path, name: str) -> None:
    assert_builds(bundle / name / "model.onnx", shape=(1, 8, 8))
