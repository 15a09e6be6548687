"""ONNX files given to ``smart-export check`` and ``smart-bench --baseline`` end in seconds with one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx import helper as make

from runtime.bundles import write_bundle
from smart_common.errors import SmartError
from smart_export import shapes
from smart_export.check import check_bundle
from smart_export.errors import ExportError
from smart_export.sparsity import sparsity_of_onnx
from smart_runtime.bench import baseline as trial
from smart_runtime.bench.contenders import BASELINE, Contender, Source, read_baseline
from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.engines import REFERENCE_ENGINE
from smart_runtime.errors import EngineError

_SECONDS = 8  # most of it a child process that is bounded to one second
_OPSETS = [make.make_opsetid("", 21), make.make_opsetid("d", 1)]
WEIGHT = make.make_tensor("f", TensorProto.FLOAT, [4, 4, 1, 1], [0.5] * 16)


def conv(weight: str, *, read: str = "x", to: str = "y") -> onnx.NodeProto:
    return make.make_node("Conv", [read, weight], [to])


def write(path: Path, nodes: list[onnx.NodeProto], *tensors: onnx.TensorProto, functions: Any = ()) -> Path:
    x = make.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 4, 4])
    y = make.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = make.make_graph(nodes, "g", [x], [y], list(tensors))
    model = make.make_model(graph, opset_imports=_OPSETS, functions=list(functions), ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@contextmanager
def soon() -> Iterator[None]:
    before = os.times()
    yield
    used = [b - a for a, b in zip(before[:4], os.times()[:4], strict=True)]  # ours and our children's: no clock's
    assert sum(used) < _SECONDS


def block_size(path: Path) -> Path:
    weight = make.make_tensor("w", TensorProto.INT8, [4, 4, 1, 1], list(range(16)))
    scale = make.make_tensor("s", TensorProto.FLOAT, [4, 1, 1, 1], [1.0] * 4)
    node = make.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=3_000_000_000)
    return write(path, [node, conv("d")], weight, scale)


def widening_scale(path: Path) -> Path:
    """Two lists of 40,000 numbers that widen each other to 1,600 million."""
    weight = make.make_tensor("w", TensorProto.INT8, [40_000, 1], bytes(40_000), raw=True)
    scale = make.make_tensor("s", TensorProto.FLOAT, [40_000], np.ones(40_000, np.float32).tobytes(), raw=True)
    node = make.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=1)
    return write(path, [node, make.make_node("MatMul", ["x", "d"], ["y"])], weight, scale)


def endless_dims(path: Path) -> Path:
    tensor = TensorProto(name="big", data_type=TensorProto.FLOAT)
    tensor.dims.extend([2**62] * 100_000)
    return write(path, [conv("f")], WEIGHT, tensor)


def a_weight_read_often(path: Path) -> Path:
    data = np.zeros(512 * 512, np.float32).tobytes()
    weight = make.make_tensor("f", TensorProto.FLOAT, [512, 512, 1, 1], data, raw=True)
    chain = [make.make_node("Transpose", [f"k{i}" if i else "f"], [f"k{i + 1}"], perm=[1, 0, 3, 2]) for i in range(60)]
    return write(path, [*chain, *(conv("k60", to=f"y{i}" if i else "y") for i in range(5000))], weight)


def recursive(path: Path) -> Path:
    inner = [make.make_node("F", ["a"], ["b"], domain="d")]
    function = make.make_function("d", "F", ["a"], ["b"], inner, _OPSETS)
    return write(
        path, [make.make_node("F", ["x"], ["z"], domain="d"), conv("f", read="z")], WEIGHT, functions=[function]
    )


def expanding(path: Path) -> Path:
    functions = [
        make.make_function(
            "d",
            f"F{i}",
            ["a"],
            ["b"],
            [
                make.make_node(f"F{i + 1}", ["a"], ["m"], domain="d"),
                make.make_node(f"F{i + 1}", ["m"], ["b"], domain="d"),
            ],
            _OPSETS,
        )
        for i in range(30)
    ]
    functions.append(make.make_function("d", "F30", ["a"], ["b"], [make.make_node("Relu", ["a"], ["b"])], _OPSETS))
    first = make.make_node("F0", ["x"], ["z"], domain="d")
    return write(path, [first, conv("f", read="z")], WEIGHT, functions=functions)


def many_nodes(path: Path) -> Path:
    """A node of two bytes is a hundred once it is parsed."""
    return write_raw(path, b"\x0a\x00" * 300_000)


def write_raw(path: Path, graph: bytes) -> Path:
    size = bytearray()
    left = len(graph)
    while left >= 0x80:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    path.write_bytes(b"\x08\x0a\x3a" + bytes([*size, left]) + graph)
    return path


def doubling(path: Path) -> Path:
    one = make.make_tensor("v", TensorProto.INT64, [1], [1])
    chain = [make.make_node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(40)]
    nodes = [make.make_node("Constant", [], ["c0"], value=one), *chain]
    return write(path, [*nodes, make.make_node("Reshape", ["f", "c40"], ["r"]), conv("r")], WEIGHT)


REFUSED = {
    "block size": (block_size, "blocks of 3000000000 along an axis of 4"),
    "widening scale": (widening_scale, "a scale of the shape"),
    "endless dims": (endless_dims, "more than 32 dimensions"),
    "a weight read often": (a_weight_read_often, "read or changed more often"),
    "recursive function": (recursive, "functions"),
    "expanding functions": (expanding, "functions"),
    "many nodes": (many_nodes, "more than 131072 nodes"),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED)
def test_check_refuses_it_soon(tmp_path: Path, build: Callable[[Path], Path], words: str) -> None:
    path = build(tmp_path / "model.onnx")
    with soon(), pytest.raises(ExportError, match=words) as caught:
        sparsity_of_onnx(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("where", ["weights.bin", "w", "x"])
def test_names_that_are_no_utf8_are_refused(where: str, tmp_path: Path) -> None:
    """Protobuf hands them over as bytes: found by `make fuzz`, in the place of external data."""
    weight = TensorProto(name="w", dims=[4, 4, 1, 1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="weights.bin")
    path = write(tmp_path / "model.onnx", [conv("w")], weight)
    name = where.encode()
    path.write_bytes(path.read_bytes().replace(bytes([len(name)]) + name, bytes([len(name)]) + b"\xff" * len(name)))
    with pytest.raises(ExportError, match="names that are no UTF-8"):
        sparsity_of_onnx(path)


def test_shapes_that_take_too_much_are_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_SECONDS", 1)
    with soon():
        found = sparsity_of_onnx(doubling(tmp_path / "model.onnx"))
    assert found.notes[0].startswith("shapes were not inferred")
    assert found.layers[0].macs is None


def test_shapes_are_still_inferred(tmp_path: Path) -> None:
    found = sparsity_of_onnx(write(tmp_path / "model.onnx", [conv("f")], WEIGHT))
    assert found.notes == ()
    assert found.macs == 4 * 4 * 4 * 4


def as_contender(path: Path) -> Contender:
    given = read_baseline(path)
    source = Source(place=given.file, graph=None, digest=None, shape=(4, 4, 4))
    return Contender(name=BASELINE, bytes=given.bytes, source=source)


@pytest.mark.parametrize("build", [endless_dims, recursive, expanding, many_nodes])
def test_a_baseline_is_refused_before_an_engine_sees_it(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    with soon(), pytest.raises(SmartError, match=r"is no (baseline: expected |ONNX file; )"):
        read_baseline(build(tmp_path / "model.onnx"))


def test_a_baseline_that_takes_all_memory_ends_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime folds constants: these would be 2^32 numbers of eight bytes, of which it takes what there is."""
    monkeypatch.setattr(trial, "_MAX_BYTES", 2**30)
    monkeypatch.setattr(trial, "_SECONDS", 2)
    one = make.make_tensor("v", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    chain = [make.make_node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=3) for i in range(32)]
    nodes = [make.make_node("Constant", [], ["c0"], value=one), *chain]
    last = [make.make_node("ReduceSum", ["c32"], ["s"]), make.make_node("Add", ["x", "s"], ["y"])]
    path = write(tmp_path / "model.onnx", [*nodes, *last])
    with soon(), pytest.raises(EngineError) as caught:
        trial.try_baseline(as_contender(path), engine=REFERENCE_ENGINE, batch=1, threads=1, seed=0)
    assert "\n" not in str(caught.value)


def test_a_sound_baseline_passes_its_trial(tmp_path: Path) -> None:
    contender = as_contender(write(tmp_path / "model.onnx", [conv("f")], WEIGHT))
    trial.try_baseline(contender, engine=REFERENCE_ENGINE, batch=1, threads=1, seed=0)


def test_the_checker_never_sees_a_bundles_functions(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    expanding(bundle / "clean" / "model.onnx")
    write_checksums(bundle)
    with soon(), pytest.raises(EngineError, match="a function"):
        check_bundle(bundle)
