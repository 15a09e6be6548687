"""Zeros, patterns, parameters and products of ONNX files: against plain loops, ONNX's evaluator and torch's count."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from export.test_networks import SHAPE, smart
from networks import NETWORKS, PLAIN
from reference import costs
from reference import sparsity as oracle
from smart_devices import resolve_target
from smart_devices.device_profile import SPARSE_GAIN_CHANNELS
from smart_export import shapes
from smart_export.errors import ExportError
from smart_export.folding import fold, fold_dense, unmasked
from smart_export.graph import Converter, onnx_from_module, save_graph
from smart_export.patterns import parse_pattern, why_no_gain, zeros_of
from smart_export.sparsity import FileSparsity, LayerSparsity, sparsity_of_onnx
from smart_train.architectures.build import ARCHITECTURES
from smart_train.masking.n_of_m import TWO_FOUR, NOfM


@pytest.fixture(scope="module", autouse=True)
def shapes_are_inferred_here() -> Iterator[None]:
    """Infer them without a process for each file: these files are our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "run_limited", lambda _, data, **__: shapes.infer(data))
        yield


Array = np.ndarray[Any, Any]


def saved(text: str, folder: Path, **weights: Array) -> Path:
    """Write a graph, given as text, with these values for the tensors that the text declares."""
    model = onnx.parser.parse_model(text)
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    file = folder / "model.onnx"
    onnx.save(model, str(file))
    return file


def only_layer(file: Path) -> LayerSparsity:
    found = sparsity_of_onnx(file)
    assert len(found.layers) == 1
    return found.layers[0]


def evaluated(model: onnx.ModelProto, x: Array) -> Array:
    """Return the first output, as ONNX's own evaluator has it."""
    outputs: Any = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(outputs[0])


def sparse(shape: tuple[int, ...], *, seed: int, density: float = 0.5) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- patterns


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, Array, int, int]:
    """An operator, a weight for it, the axis it sums over, and its groups."""
    op = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    groups = draw(st.integers(1, 3)) if op.startswith("Conv") else 1
    channels = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)) if op.startswith("Conv") else []
    axis = {"Conv": 1, "ConvTranspose": 0}.get(op, draw(st.integers(0, 1)))
    shape = [draw(st.integers(1, 4)) * groups, draw(st.integers(1, 4)), *kernel]
    shape[axis] = channels * (groups if op == "ConvTranspose" else 1)
    density = draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    weight = sparse(tuple(shape), seed=draw(st.integers(0, 2**32 - 1)), density=density)
    return op, weight, axis, groups


@given(layer=layers(), pattern=st.sampled_from([TWO_FOUR, NOfM(1, 4), NOfM(1, 2), NOfM(4, 8)]))
@settings(deadline=None)
def test_zeros_and_groups_are_those_of_plain_loops(layer: tuple[str, Array, int, int], pattern: NOfM) -> None:
    op, weight, axis, groups = layer
    found = zeros_of(weight, op=op, axis=axis, groups=groups, pattern=pattern)
    split = groups if op == "ConvTranspose" else 1  # the others' weights have the channels of one group only
    assert (found.weights, found.zeros) == (weight.size, oracle.zeros(weight))
    if weight.shape[axis] // split % pattern.m:
        assert (found.holds, found.runs) == (False, 0)
        return
    expected = oracle.violations(weight, axis=axis, n=pattern.n, m=pattern.m, groups=split)
    assert found.violations == expected
    assert found.runs == len(list(oracle.groups_of(weight, axis=axis, m=pattern.m, groups=split)))
    assert found.holds == (expected == 0)


def test_what_is_zero() -> None:
    weight = np.array([[0.0, -0.0, np.nan, 1e-45]], np.float32)
    found = zeros_of(weight, op="Gemm", axis=1)
    assert (found.zeros, found.holds) == (2, True)
    assert zeros_of(np.zeros((0, 4)), op="Gemm", axis=1).zero_fraction == 0


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((8, 6, 3, 3), {}, "6 input channels, no multiple of 4"),
        ((8, 2, 3, 3), {"groups": 4}, "2 input channels in each of 4 groups"),
        ((8, 1, 3, 3), {"groups": 8}, "depthwise"),
        ((8, 8, 1, 1), {}, "no zeros"),
        ((8, 8, 1, 1), {"dtype": "float64"}, "float64 weights"),
        ((8, 8, 1, 1), {"op": "ConvTranspose", "axis": 0}, "ConvTranspose"),
    ],
)
def test_why_a_weight_is_not_sparse(shape: tuple[int, ...], options: dict[str, Any], words: str) -> None:
    found = zeros_of(np.ones(shape, np.float32), **{"op": "Conv", "axis": 1, **options})
    assert words in str(found.why_not)


def test_how_many_groups_are_not_sparse_is_said() -> None:
    weight = np.ones((8, 8), np.float32)
    weight[0, :2] = 0
    assert zeros_of(weight, op="Gemm", axis=1).why_not == "15 of 16 groups of 4 have more than 2 non-zeros"


@pytest.mark.parametrize("text", ["0:4", "4:4", "5:4", "2:65", "24", "2:4:8", "", "2:", "²:4", "-1:4", "2:99999"])
def test_a_pattern_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="2:4"):
        parse_pattern(text)


def test_a_pattern_reads_as_it_is_named() -> None:
    assert parse_pattern("2:4") == TWO_FOUR
    assert parse_pattern("4:8").name == "4:8"


@pytest.mark.parametrize(
    ("target", "changes", "words"),
    [
        ("jetson-orin", {}, None),
        ("jetson-orin", {"in_channels": SPARSE_GAIN_CHANNELS - 1}, "too narrow"),
        ("jetson-orin", {"dtype": "float32"}, "float32"),
        ("jetson-orin", {"groups": 2}, "2 groups"),
        ("jetson-orin", {"op": "ConvTranspose"}, "ConvTranspose"),
        ("jetson-orin", {"pattern": NOfM(1, 4)}, "2:4 only, not 1:4"),
        ("cpu", {}, "cpu has no sparse tensor cores"),
    ],
)
def test_where_a_device_gains(target: str, changes: dict[str, Any], words: str | None) -> None:
    layer = {"op": "Conv", "in_channels": 256, "out_channels": 256, "groups": 1, "dtype": "float16"}
    found = why_no_gain(resolve_target(target), **{**layer, **changes})
    assert found is None if words is None else words in str(found)


# ------------------------------------------------------------------------------------- from the layer to the tensor


@st.composite
def chains(draw: st.DrawFn) -> tuple[Array, list[onnx.NodeProto], list[onnx.TensorProto]]:
    """A weight on its way to a MatMul, through nodes that only store it otherwise."""
    shape = (draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([2, 4, 8])))
    weight = sparse(shape, seed=draw(st.integers(0, 2**32 - 1)))
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    name = "w"
    for i, step in enumerate(draw(st.lists(st.sampled_from(["T", "I", "R", "C", "Q"]), max_size=5))):
        before, name = name, f"w{i}"
        if step == "T":
            nodes.append(helper.make_node("Transpose", [before], [name], perm=[1, 0]))
            shape = shape[::-1]
        elif step == "I":
            nodes.append(helper.make_node("Identity", [before], [name]))
        elif step == "R":
            shape = (shape[0] * shape[1] // 4, 4)
            tensors.append(
                numpy_helper.from_array(np.array(draw(st.sampled_from([shape, (-1, 4)])), np.int64), f"s{i}")
            )
            nodes.append(helper.make_node("Reshape", [before, f"s{i}"], [name]))
        elif step == "C":
            nodes.append(helper.make_node("Cast", [before], [f"{name}h"], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [f"{name}h"], [name], to=TensorProto.FLOAT))
        else:
            axis = draw(st.integers(0, 1))
            size = draw(st.sampled_from([(), (shape[axis],)]))
            scale = (rng.random(size) + 0.5).astype(np.float32)
            kind = draw(st.sampled_from([np.int8, np.uint8]))
            points = rng.integers(0, 5, size).astype(kind)
            tensors += [numpy_helper.from_array(np.asarray(scale), f"a{i}"), numpy_helper.from_array(points, f"z{i}")]
            nodes.append(helper.make_node("QuantizeLinear", [before, f"a{i}", f"z{i}"], [f"{name}q"], axis=axis))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}q", f"a{i}", f"z{i}"], [name], axis=axis))
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"]))
    return weight, nodes, tensors


@given(chain=chains())
@settings(deadline=None)
def test_a_weight_is_read_as_the_layer_reads_it(
    chain: tuple[Array, list[onnx.NodeProto], list[onnx.TensorProto]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    weight, nodes, tensors = chain
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w"), *tensors])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    file = tmp_path_factory.mktemp("chain") / "model.onnx"
    onnx.save(model, str(file))
    layer = only_layer(file)
    read = nodes[-1].input[1]
    expected = weight
    if read != "w":  # ONNX's own evaluator says what the layer gets
        model.graph.output.append(helper.make_tensor_value_info(read, TensorProto.FLOAT, None))
        rows = np.zeros((1, 1), np.float32)
        del model.graph.node[-1], model.graph.output[0]
        expected = evaluated(model, rows)
    assert layer.shape == expected.shape
    assert layer.weight == "w"
    assert layer.zeros is not None
    assert layer.zeros.zeros == oracle.zeros(expected)
    if expected.shape[0] % 4 == 0:
        assert layer.zeros.violations == oracle.violations(expected, axis=0, n=2, m=4)
    assert layer.macs == expected.size
    last = next((node for node in reversed(nodes) if node.op_type in {"Cast", "DequantizeLinear"}), None)
    quantised = last is not None and last.op_type == "DequantizeLinear"
    assert (layer.dtype in {"int8", "uint8"}) == quantised


def test_an_int8_weight_is_zero_at_its_zero_point(tmp_path: Path) -> None:
    weight = np.array([[3, 3, 5, 6], [0, 3, 0, 0]], np.int8)  # the first row is 2:4 with a zero point of 3, not with 0
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 4] x) => (float[N, 2] y) <float s = {0.5}, int8 z = {3}> {
        w = DequantizeLinear(q, s, z)
        y = Gemm<transB = 1>(x, w)
    }"""
    layer = only_layer(saved(text, tmp_path, q=weight))
    assert (layer.dtype, layer.parameters, layer.bytes) == ("int8", 8, 8)
    assert layer.zeros is not None
    assert (layer.zeros.zeros, layer.zeros.violations) == (3, 1)


def test_int4_and_blocks_of_scales_are_read(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[N, 8] x) => (float[N, 4] y) {
        w = DequantizeLinear<axis = 0, block_size = 4>(q, s)
        y = MatMul(x, w)
    }"""
    model = onnx.parser.parse_model(text)
    values = np.arange(32) % 4  # rows 0, 1, 2, 3 each: a column is constant
    model.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [8, 4], values))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 4), np.float32), "s"))
    onnx.save(model, str(tmp_path / "model.onnx"))
    layer = only_layer(tmp_path / "model.onnx")
    assert (layer.dtype, layer.parameters, layer.bytes) == ("int4", 32, 16)
    assert layer.zeros is not None
    assert (layer.zeros.zeros, layer.zeros.violations) == (8, 6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16), ("double", TensorProto.DOUBLE)],
)
def test_other_floats_are_read(name: str, kind: int, tmp_path: Path) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g ({name}[N, 4] x) => ({name}[N, 2] y) {{ y = MatMul(x, w) }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(helper.make_tensor("w", kind, [4, 2], [0, 1, 0, 1, 2, 1, 3, 1]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    layer = only_layer(tmp_path / "model.onnx")
    assert layer.dtype == {"double": "float64"}.get(name, name)
    assert layer.bytes == 8 * {"double": 8}.get(name, 2)
    assert layer.zeros is not None
    assert (layer.zeros.zeros, layer.zeros.violations) == (2, 1)


def test_a_weight_in_a_constant_node_is_read(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 4] x) => (float[N, 1] y) {
        c = Constant<value = float[1, 4] {1, 0, 0, 2}>()
        w = Transpose(c)
        y = MatMul(x, w)
    }"""
    layer = only_layer(saved(text, tmp_path))
    assert layer.zeros is not None
    assert (layer.weight, layer.zeros.zeros, layer.zeros.holds) == ("c", 2, True)


def test_a_weight_that_is_computed_at_run_time_is_said_so(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 4] x, float[4, 6] v) => (float[N, 6] y) { w = Add(v, v)  y = MatMul(x, w) }"""
    layer = only_layer(saved(text, tmp_path))
    assert (layer.weight, layer.zeros, layer.macs, layer.parameters) == (None, None, 24, 0)
    assert layer.why_not == "the weight is computed at run time"


def test_a_shared_weight_counts_once(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 4] x) => (float[N, 4] y) { a = MatMul(x, w)  y = MatMul(a, w) }"""
    found = sparsity_of_onnx(saved(text, tmp_path, w=np.eye(4, dtype=np.float32)))
    assert (found.parameters, found.bytes, found.macs) == (16, 64, 32)


# ----------------------------------------------------------------------------------------------------------- costs


@given(
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    turned=st.booleans(),
    batch=st.sampled_from(["N", "1", "4"]),
)
@settings(deadline=None)
def test_a_convolution_takes_the_products_of_plain_loops(
    *,
    groups: int,
    per_group: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    turned: bool,
    batch: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    before, after = groups * per_group[0], groups * per_group[1]
    op, shape = ("ConvTranspose", (before, per_group[1])) if turned else ("Conv", (after, per_group[0]))
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[{batch}, {before}, 7, 6] x) => (float[{batch}, {after}, height, width] y) {{
        y = {op}<group = {groups}, strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}]>(x, w)
    }}"""
    weight = np.ones((*shape, *kernel), np.float32)
    file = saved(text, tmp_path_factory.mktemp("conv"), w=weight)
    images = np.zeros((1 if batch == "N" else int(batch), before, 7, 6), np.float32)
    sides = (7, 6) if turned else evaluated(onnx.load(str(file)), images).shape[2:]
    layer = only_layer(file)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (before, after, groups)
    assert layer.macs == oracle.convolution_macs(
        channels=(before, after), sides=sides, kernel=kernel, groups=groups, transposed=turned
    )


@pytest.mark.parametrize("turn_a", [0, 1])
@pytest.mark.parametrize("turn_b", [0, 1])
@pytest.mark.parametrize("side", [0, 1])
def test_a_gemm_is_read_on_either_side_and_turned(turn_a: int, turn_b: int, side: int, tmp_path: Path) -> None:
    rows, inner, columns = 3, 8, 5
    first, second = ((inner, rows) if turn_a else (rows, inner)), ((columns, inner) if turn_b else (inner, columns))
    given_shape, shape = (first, second) if side == 1 else (second, first)
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[{given_shape[0]}, {given_shape[1]}] x) => (float[{rows}, {columns}] y) {{
        y = Gemm<transA = {turn_a}, transB = {turn_b}>({"x, w" if side == 1 else "w, x"})
    }}"""
    weight = sparse(shape, seed=1)
    layer = only_layer(saved(text, tmp_path, w=weight))
    summed = shape.index(inner)
    assert layer.zeros is not None
    assert layer.zeros.violations == oracle.violations(weight, axis=summed, n=2, m=4)
    assert layer.in_channels == inner
    assert layer.out_channels == (columns if side == 1 else rows)


def test_sizes_that_the_file_leaves_open_are_unknown_and_said_so(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 3, H, W] x) => (float[N, 4, h, w2] y) { y = Conv(x, w) }"""
    found = sparsity_of_onnx(saved(text, tmp_path, w=np.ones((4, 3, 3, 3), np.float32)))
    assert (found.macs, found.layers[0].macs, found.parameters) == (None, None, 108)
    assert "are unknown" in found.notes[0]


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 4] x, bool c) => (float[N, 4] y) {
        e = Einsum<equation = "ij,jk->ik">(x, w)
        y = If(c) <
            then_branch = a () => (float[N, 4] t) { t = MatMul(e, w) },
            else_branch = b () => (float[N, 4] f) { f = Identity(e) }
        >
    }"""
    found = sparsity_of_onnx(saved(text, tmp_path, w=np.eye(4, dtype=np.float32)))
    assert found.layers == ()
    assert found.notes == ("not counted: 1 Einsum, 1 MatMul inside of a node",)


def torch_macs(network: nn.Module, images: torch.Tensor) -> int:
    """Count with torch: two operations a product; biases are added apart and not counted."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return int(counter.get_total_flops()) // 2


@functools.cache
def counted(name: str, width: int) -> dict[str, tuple[nn.Module, FileSparsity]]:
    """A named network's folded clean path and dense baseline, and what is said of their files, made as a build does."""
    net = smart(name, width=width)
    converter = Converter(input_shape=SHAPE, opset=20)
    modules = {"clean": fold(net, path="clean"), "dense": fold_dense(unmasked(net, path="clean"))}
    found: dict[str, tuple[nn.Module, FileSparsity]] = {}
    for graph, module in modules.items():
        with tempfile.TemporaryDirectory() as folder:
            save_graph(converter(module), Path(folder))
            found[graph] = (module, sparsity_of_onnx(Path(folder, "model.onnx")))
    return found


# Converting one of these takes seconds, and each is one that is counted in every run, with more blocks or channels.
LARGE = {"resnet20", "resnet34", "resnet50", "wrn16-8", "wrn40-2"}


# A network that joins ARCHITECTURES is counted here without a word.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in sorted(ARCHITECTURES)]
)
def test_every_network_costs_what_torch_counts(name: str) -> None:
    for module, found in counted(name, 8).values():
        assert found.notes == ()
        assert found.macs == torch_macs(module, torch.zeros(1, *SHAPE))
        layers_ = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert found.parameters == sum(p.numel() for m in layers_ for p in m.parameters())
        assert found.parameters + found.other_parameters == sum(
            t.numel() for t in (*module.parameters(), *module.buffers())
        )


# One that joins tests/networks is counted here without a word too; as its author wrote it, batch norms and all. Slow
# where the others have its operators, or differ from them in nothing that is counted.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in PLAIN | {"inverted residual", "dense"} else ())
        for name in sorted(NETWORKS)
    ],
)
def test_every_family_costs_what_torch_counts(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = NETWORKS[name](num_classes=4, in_channels=3).eval()
    save_graph(onnx_from_module(module, input_shape=SHAPE, opset=20), tmp_path)
    found = sparsity_of_onnx(tmp_path / "model.onnx")
    assert found.notes == ()
    assert found.macs == torch_macs(module, torch.zeros(1, *SHAPE))
    weights = [m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(layer.zeros.weights for layer in found.layers if layer.zeros is not None) == sum(weights)


@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        ("resnet8", costs.resnet, {"blocks": (1, 1, 1)}),
        ("resnet18", costs.resnet, {"blocks": (2, 2, 2, 2)}),
        pytest.param("resnet50", costs.bottleneck_resnet, {"blocks": (3, 4, 6, 3)}, marks=pytest.mark.slow),
        pytest.param("wrn40-2", costs.wide_resnet, {"blocks": (6, 6, 6)}, marks=pytest.mark.slow),
    ],
)
def test_networks_cost_what_their_papers_say(
    name: str, count: Callable[..., costs.Count], options: dict[str, Any]
) -> None:
    width = 12 if name == "wrn40-2" else 8  # with 8 its masked stem would have as many channels as the first stage
    size: dict[str, Any] = {"width": width, "side": 16, "classes": 4, **options}
    kept: dict[str, Callable[[int], int]] = {
        "clean": lambda channels: -(-channels // 2),
        "dense": lambda channels: channels,
    }
    for graph, (_, found) in counted(name, width).items():
        expected = count(**size, kept=kept[graph])
        assert found.macs == expected.macs
        if name != "wrn40-2":  # its batch norms stand before convolutions and stay beside them
            assert found.parameters == expected.folded_parameters


# ------------------------------------------------------------------------------------------------- strangers' files


def graph_text() -> str:
    return '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 4] x) => (float[N, 2] y) { y = MatMul(x, w) }'


def with_external_data(folder: Path, *, location: str = "w.bin", offset: int = 0) -> Path:
    model = onnx.parser.parse_model(graph_text())
    tensor = TensorProto(name="w", dims=[4, 2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value=str(offset))
    model.graph.initializer.append(tensor)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_external_data_is_read_from_beside_the_file(tmp_path: Path) -> None:
    file = with_external_data(tmp_path, offset=4)
    weight = sparse((4, 2), seed=3)
    (tmp_path / "w.bin").write_bytes(b"\0" * 4 + weight.tobytes())
    layer = only_layer(file)
    assert layer.zeros is not None
    assert layer.zeros.zeros == oracle.zeros(weight)


@pytest.mark.parametrize("location", ["missing.bin", "short.bin", "link.bin", "../outside.bin", "/etc/hostname", ""])
def test_external_data_that_is_not_there_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(32))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "short.bin").write_bytes(bytes(31))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(
        ExportError,
        match=r"^(expected .*, got|the data of the tensor|no plain file|.* is no ONNX file|.* holds no graph).*; .*",
    ):
        sparsity_of_onnx(with_external_data(folder, location=location))


def _damaged(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.parser.parse_model(graph_text().replace("y = M", "v = Transpose<perm = [1, 0]>(w) y = M"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 2), np.float32), "w"))
    change(model)
    return bytes(model.SerializeToString())


def _permute(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[1] = "v"
    model.graph.node[0].attribute[0].ints[0] = 7


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a graph at all",
        _damaged(lambda model: model.graph.ClearField("node")),
        _damaged(lambda model: model.graph.initializer[0].dims.append(3)),
        _damaged(lambda model: model.graph.initializer[0].dims.append(-1)),
        _damaged(lambda model: setattr(model.graph.initializer[0], "data_type", 99)),
        _damaged(lambda model: setattr(model.graph.initializer[0], "data_type", TensorProto.STRING)),
        _damaged(lambda model: model.graph.node[1].ClearField("input")),
        _damaged(_permute),
    ],
)
def test_a_file_that_is_no_sound_onnx_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(
        ExportError,
        match=r"^(expected .*, got|the data of the tensor|no plain file|.* is no ONNX file|.* holds no graph).*; .*",
    ):
        sparsity_of_onnx(file)


def test_a_name_that_would_clear_a_terminal_is_made_harmless(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(graph_text())
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 2), np.float32), "\x1b[2Jw.weight"))
    model.graph.node[0].input[1] = "\x1b[2Jw.weight"
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert only_layer(tmp_path / "model.onnx").name == "?[2Jw"


def test_a_circle_of_nodes_ends(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 4] x) => (float[N, 4] y) { a = Identity(b)  b = Identity(a)  y = MatMul(x, a) }"""
    assert only_layer(saved(text, tmp_path)).weight is None


# ------------------------------------------------------------------------------------------------------ Polygraphy


@pytest.mark.skipif(
    shutil.which("polygraphy") is None, reason="the command polygraphy (pip install polygraphy) is absent"
)
def test_polygraphy_finds_the_same_layers(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[1, 8, 5, 5] x) => (float[1, 4] y) {
        a = Conv(x, sparse)
        b = Conv(a, dense)
        c = Conv(b, narrow)
        d = GlobalAveragePool(c)
        e = Flatten(d)
        t = Transpose<perm = [1, 0]>(turned)
        y = Gemm<transB = 1>(e, t)
    }"""
    kept = np.tile(np.array([1, 0, 0, 1], np.float32), 2)
    file = saved(
        text,
        tmp_path,
        sparse=np.ones((8, 8, 1, 1), np.float32) * kept[:, None, None],
        dense=np.ones((6, 8, 3, 3), np.float32),
        narrow=np.zeros((8, 6, 1, 1), np.float32),
        turned=np.ones((8, 4), np.float32) * kept[:, None],
    )
    command = ["polygraphy", "inspect", "sparsity", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    theirs = {line.split("sparse tensor:")[1].strip() for line in done.stdout.splitlines() if "Found sparse" in line}
    ours = {layer.weight for layer in sparsity_of_onnx(file).layers if layer.why_not is None}
    assert ours == theirs == {"sparse", "turned"}
