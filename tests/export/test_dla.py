"""What the accelerators of a Jetson would run: NVIDIA's limits, one by one, on graphs written as text."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from smart_devices import Dla, Fact, Target, resolve_target
from smart_export import BuildResult
from smart_export.dla import DlaReport, dla_report, has_dla
from smart_export.layers import LayerCost
from smart_export.report import build_columns, build_reasons, build_rows, dla_lines, expectations, summary
from smart_runtime.bundle.bundle import Bundle

ORIN = resolve_target("jetson-orin")


def layer(name: str, kind: str = "Conv2d") -> LayerCost:
    rest: dict[str, Any] = dict.fromkeys([field.name for field in dataclasses.fields(LayerCost)])
    return LayerCost(**{**rest, "name": name, "type": kind})


def judged(
    body: str, *layers: LayerCost, target: Target = ORIN, shape: str = "N, 3, 16, 16", **tensors: Any
) -> DlaReport:
    """Judge a graph of an image to scores; a tensor is given by its shape."""
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20]> g (float[{shape}] image) => (x) {{{body}}}'
    )
    # The parser takes no dots in names, and layers are known by them.
    for name, size in tensors.items():
        tensor = onnx.numpy_helper.from_array(np.zeros(size, np.float32), f"network.{name}.weight")
        model.graph.initializer.append(tensor)
        for node in model.graph.node:
            node.input[:] = [tensor.name if value == f"w_{name}" else value for value in node.input]
    inferred = ShapeInferencePass()(ir.from_proto(model)).model
    return dla_report(inferred, layers or [layer(name) for name in tensors], target=target)


def conv(attributes: str) -> str:
    return f"x = Conv{f'<{attributes}>' if attributes else ''}(image, w_a)"


@pytest.mark.parametrize(
    ("attributes", "shape", "why"),
    [
        ("kernel_shape = [3, 3], pads = [1, 1, 1, 1]", (8, 3, 3, 3), None),
        ("strides = [8, 8]", (8, 3, 32, 32), None),
        ("strides = [1, 9]", (8, 3, 3, 3), "stride 1x9, DLA takes 1 to 8"),
        ("pads = [16, 16, 16, 16]", (8, 3, 33, 33), "kernel 33x33, DLA takes 1 to 32"),
        ("pads = [32, 0, 0, 0]", (8, 3, 32, 32), "padding 32x0x0x0, DLA takes 0 to 31"),
        ("pads = [1, 1, 1, 1]", (8, 3, 1, 1), "padding 1x1x1x1, DLA takes less than the kernel's 1x1"),
        ("dilations = [33, 1], pads = [31, 0, 31, 0]", (8, 3, 32, 1), "dilation 33x1, DLA takes 1 to 32"),
        ('auto_pad = "SAME_UPPER"', (8, 3, 3, 3), "padding that is not written out"),
        ("group = 3", (3, 1, 3, 3), None),
        ("", (8200, 3, 1, 1), "a dimension of 8200, DLA takes up to 8192"),
    ],
)
def test_convolutions(attributes: str, shape: tuple[int, ...], why: str | None) -> None:
    wide = "N, 3, 64, 64"
    assert judged(conv(attributes), a=shape, shape=wide).why_not == {"a": why}


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    stride=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    dilation=st.tuples(st.integers(1, 35), st.integers(1, 35)),
    pad=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_a_convolution_is_eligible_within_all_limits_and_only_then(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], pad: tuple[int, int]
) -> None:
    allowed = all(
        1 <= k <= 32 and 1 <= s <= 8 and 1 <= d <= 32 and 0 <= p <= 31 and p < k
        for k, s, d, p in zip(kernel, stride, dilation, pad, strict=True)
    )
    attributes = f"strides = {[*stride]}, dilations = {[*dilation]}, pads = {[*pad, *pad]}"
    found = judged(conv(attributes), a=(2, 3, *kernel), shape="N, 3, 4000, 4000")
    assert (found.why_not["a"] is None) == allowed, found


@pytest.mark.parametrize(
    ("body", "others"),
    [
        ("a = Relu(image) b = Sigmoid(a) x = Add(a, b)", {}),
        ("x = MaxPool<kernel_shape = [8, 8], strides = [16, 16]>(image)", {}),
        ("x = MaxPool<kernel_shape = [9, 9]>(image)", {"MaxPool": "kernel 9x9, DLA takes 1 to 8"}),
        ("x = AveragePool<kernel_shape = [2, 2], strides = [17, 1]>(image)", {"AveragePool": "stride 17x1"}),
        ("x = Concat<axis = 1>(image, image)", {}),
        ("x = Concat<axis = -3>(image, image)", {}),
        ("x = Concat<axis = 2>(image, image)", {"Concat": "joins axis 2"}),
        ("a = Gelu(image) x = HardSwish(a)", {"Gelu": "not among", "HardSwish": "not among"}),
        ("x = GlobalAveragePool(image)", {"GlobalAveragePool": "not among"}),
    ],
)
def test_other_operators(body: str, others: dict[str, str]) -> None:
    found = judged(body, layer("unused")).others
    assert found.keys() == others.keys()
    assert all(found[op].startswith(others[op]) for op in others)


def test_products_take_channels_and_not_the_last_of_four_axes() -> None:
    flat = "a = Flatten(image) x = Gemm<transB = 1>(a, w_fc)"
    assert judged(flat, layer("fc", "Linear"), fc=(5, 768)).why_not == {"fc": None}
    tokens = "a = Transpose<perm = [0, 2, 3, 1]>(image) x = MatMul(a, w_fc)"
    why = judged(tokens, layer("fc", "Linear"), fc=(3, 5)).why_not["fc"]
    assert why is not None
    assert why.startswith("a product over its features' last axis")


def test_a_layer_called_twice_is_judged_by_its_worse_call() -> None:
    weight = "w_a"
    for strides in itertools.permutations((1, 9)):
        first, second = strides
        body = f"y = Conv<strides = [{first}, 1]>(image, {weight}) x = Conv<strides = [{second}, 1]>(y, {weight})"
        assert judged(body, a=(3, 3, 1, 1), shape="N, 3, 99, 99").why_not == {"a": "stride 9x1, DLA takes 1 to 8"}


def test_a_layer_whose_weight_the_graph_computes_is_not_judged() -> None:
    body = "w = Relu(w_a) x = Conv(image, w)"
    found = judged(body, a=(3, 3, 1, 1))
    assert found.why_not == {"a": "its weight is computed in the graph, so it was not judged"}
    assert found.others == {"Conv": "its weight is computed at run time"}


def test_a_device_without_one_says_so_of_every_layer() -> None:
    card = judged(conv(""), a=(8, 3, 3, 3), target=resolve_target("desktop-gpu"))
    assert (card.why_not, card.record, list(dla_lines(card))) == ({"a": "desktop-gpu has no DLA"}, None, [])
    dla = ORIN.profile.dla
    assert dla is not None
    unknown = dataclasses.replace(dla, engines=Fact(value=None, unit=None, source="unverified"))
    board = Target(name="board", profile=dataclasses.replace(ORIN.profile, dla=unknown))
    assert isinstance(unknown, Dla)
    assert not has_dla(board)
    assert judged(conv(""), a=(8, 3, 3, 3), target=board).why_not == {"a": "board is not known to have a DLA"}


def test_the_bundle_the_report_and_the_table_say_the_same(built: BuildResult) -> None:
    graph = built.paths["clean"]
    manifest = Bundle.open(built.bundle).manifest.paths["clean"]
    assert {row["name"]: row["why_not_dla"] for row in manifest.layers} == graph.dla.why_not
    assert summary(built, layers=True)["paths"]["clean"]["dla"] == {
        "cores": 2,
        "layers": 10,
        "eligible_layers": 10,
        "gpu_operators": {"ReduceMean": "not among the operators that TensorRT hands to DLA"},
    }
    column = build_columns(ORIN).index("DLA")
    assert {row[column] for row in build_rows(graph, expectations(built)["clean"])} == {"yes"}
    assert "DLA: 10 of 10 layers eligible at fp16 or int8 and one fixed batch size" in list(build_reasons(graph))[-1]
    assert "DLA" not in build_columns(resolve_target("cpu"))


def test_the_line_names_what_stays_on_the_gpu_by_reason() -> None:
    report = DlaReport(2, {"a": None, "b": "why", "c": "why"}, {"Gelu": "how"})
    assert list(dla_lines(report)) == [
        "DLA: 1 of 3 layers eligible at fp16 or int8 and one fixed batch size; the GPU keeps b, c (why), Gelu (how)"
    ]
