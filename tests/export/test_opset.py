"""Graphs for targets whose TensorRT reads an older operator set than torch writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from export.command import smart_export
from smart_devices import resolve_target
from smart_export import ExportError, build_bundle
from smart_export.graph import lower_opset_, onnx_from_module
from smart_train import Checkpoint


class Pooled(nn.Module):
    """Every way in which torch reduces, and what it writes for resizing, padding and layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        larger = nn.functional.interpolate(image, scale_factor=2, mode="bilinear")
        x = nn.functional.gelu(nn.functional.hardswish(self.conv(larger)))
        mean, top, low = x.mean((2, 3)), x.amax((2, 3)), x.amin((2, 3))
        length = torch.linalg.vector_norm(x, dim=(2, 3))
        first, second = torch.split(self.norm(mean + top + low + length), 4, dim=1)
        return self.last(torch.cat([second, first], 1))  # type: ignore[no-any-return]  # torch says Any


def run(model: ir.Model, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])


def test_a_graph_of_opset_17_computes_the_same() -> None:
    torch.manual_seed(0)
    module = Pooled().eval()
    image = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    model = onnx_from_module(module, input_shape=(3, 8, 8), opset=17)
    assert (model.opset_imports[""], model.ir_version) == (17, 8)
    for node in model.graph.all_nodes():
        if node.op_type in {"ReduceMean", "ReduceMax", "ReduceMin"}:
            assert len(node.inputs) == 1
            assert node.attributes.get_ints("axes") == (2, 3)
    with torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
    assert np.abs(run(model, image) - expected).max() <= 1e-5  # another order of the same float32 sums


@pytest.mark.parametrize(
    "precision", [pytest.param("fp32", marks=pytest.mark.slow), pytest.param("fp16", marks=pytest.mark.slow), "int8"]
)
def test_a_bundle_for_an_xavier_is_of_its_opset(checkpoint: Checkpoint, tmp_path: Path, precision: str) -> None:
    target = resolve_target("jetson-xavier-nx")
    build_bundle(checkpoint, output=tmp_path / "bundle", target=target, precision=precision, max_drop=1.0)
    for name in ("clean", "robust", "dense"):
        file = tmp_path / "bundle" / name / "model.onnx"
        onnx.checker.check_model(str(file), full_check=True)
        model = onnx.load(str(file), load_external_data=False)
        assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 17)}


def test_a_jetpack_release_chooses_the_opset_on_the_command_line(checkpoint_file: Path, tmp_path: Path) -> None:
    done = smart_export(
        checkpoint_file, "--target", "jetson-orin", "--jetpack", "6.0", "--baseline", "none", "-o", tmp_path / "bundle"
    )
    assert done.returncode == 0, done.stderr
    model = onnx.load(str(tmp_path / "bundle/clean/model.onnx"), load_external_data=False)
    assert model.opset_import[0].version == 17
    document = json.loads((tmp_path / "bundle/manifest.json").read_text(encoding="utf-8"))
    assert document["additional_metadata"]["smart_edge"]["target"]["jetpack"] == "6.0"


def test_an_export_for_a_board_that_cannot_run_the_runtime_says_so(checkpoint_file: Path, tmp_path: Path) -> None:
    done = smart_export(
        checkpoint_file, "--target", "jetson-xavier-nx", "--baseline", "none", "-o", tmp_path / "bundle", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert "note: smart-edge's runtime needs Python 3.10 or newer" in done.stderr


def graph(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agraph (float[2, 3] x) => (float[2, 3] y) { y = Mish (x) }", "needs Mish of opset 18"),
        (
            "agraph (float[2, 5] x) => (float[2, 3] y, float[2, 2] z) { y, z = Split <axis = 1, num_outputs = 2> (x) }",
            "needs Split of opset 18",
        ),
        (
            "agraph (float[1, 1, 2, 2] x, float[4] s) => (float[1, 1, 1, 1] y) "
            '{ y = Resize <antialias = 1, mode = "linear"> (x, , s) }',
            "needs Resize of opset 18",
        ),
        ("agraph (float[2, 3] x, int64[1] a) => (float[2] y) { y = ReduceMean (x, a) }", "computes the axes"),
        (
            "agraph (float[2, 3] x) => (float[2, 3] y) { y = ReduceMax <noop_with_empty_axes = 1> (x) }",
            "reduces over no axes",
        ),
    ],
)
def test_what_the_older_set_does_not_have_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        lower_opset_(graph(text), opset=17)


def test_what_means_the_same_is_kept() -> None:
    model = graph(
        "agraph (float[2, 4] x) => (float[1, 1] y) <int64[2] parts = {2, 2}> "
        "{ a, b = Split <axis = 1> (x, parts)\n c = Concat <axis = 1> (b, a)\n y = ReduceMean (c) }"
    )
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    lower_opset_(model, opset=17)
    assert run(model, x).item() == x.mean()
