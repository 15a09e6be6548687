"""Weights put into an ONNX file's own bytes: as the onnx package and ONNX Runtime read it."""

from __future__ import annotations

import mmap
import os
import tracemalloc
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.bundles import as_float, expected_scores, graph_files, random_images
from runtime.test_onnx_weights import DTYPES, graph_with
from smart_runtime.bundle.bundle import MAX_GRAPH_BYTES
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import create_engine
from smart_runtime.engines.onnx_inline import inlined
from smart_runtime.engines.onnx_weights import external_tensors
from smart_runtime.errors import EngineError

ARRAYS = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@given(st.lists(ARRAYS, min_size=1, max_size=4), st.integers(0, 9))
def test_tensors_of_every_dtype_are_inside_and_nothing_else_is_changed(values: list[Any], gap: int) -> None:
    inside = np.arange(5, dtype=np.float32)
    named = {f"tensor {i}": value for i, value in enumerate(values)}
    graph = graph_with(named, gap=gap, inline=inside)
    result = onnx.ModelProto.FromString(inlined(graph))
    read = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    assert list(read) == [*named, "inline"]
    for name, value in named.items():
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        assert read[name].tobytes() == value.tobytes()
    assert not any(tensor.external_data or tensor.data_location for tensor in result.graph.initializer)
    before = onnx.ModelProto.FromString(graph.model)
    del before.graph.initializer[:], result.graph.initializer[:]
    assert result == before


@pytest.mark.parametrize("name", ["clean", "robust", "dense"])
def test_scores_are_the_same_to_the_last_bit(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\xff" * 10_000)  # NaN, for whoever looks here
    model, weights = graph_files(name)
    graph = GraphBytes(model=model, weights=weights, weights_name="weights.bin")
    images = as_float(random_images(7))
    inputs, outputs = InputSpec(name="image", channels=3, height=6, width=4), OutputSpec(name="scores", classes=5)
    outside = create_engine("onnxruntime-cpu", graph, inputs=inputs, outputs=outputs).run(images)
    session = onnxruntime.InferenceSession(inlined(graph), providers=["CPUExecutionProvider"])
    (inside,) = session.run(["scores"], {"image": images})
    assert np.array_equal(inside, outside)
    assert np.allclose(inside, expected_scores(name, images), atol=1e-5)


def test_a_graph_without_weights_outside_is_the_very_same_bytes() -> None:
    model = graph_with({}, inline=np.arange(3)).model
    assert inlined(GraphBytes(model=model, weights=None, weights_name=None)) is model


def test_two_graphs_in_one_file_which_readers_merge_both_have_their_weights() -> None:
    first, second = graph_with({"a": np.arange(3)}), graph_with({"b": np.arange(4)})
    empty = b"\x3a\x00"  # a graph of no bytes
    shifted = onnx.ModelProto.FromString(second.model)
    shifted.graph.initializer[0].external_data[1].value = str(len(first.weights or b""))
    whole = GraphBytes(
        model=first.model + empty + shifted.SerializeToString(),
        weights=(first.weights or b"") + (second.weights or b""),
        weights_name="w.bin",
    )
    read = onnx.ModelProto.FromString(inlined(whole)).graph.initializer
    assert [onnx.numpy_helper.to_array(tensor).tolist() for tensor in read] == [[0, 1, 2], [0, 1, 2, 3]]


def test_values_that_stood_beside_the_place_of_the_weights_do_not_survive() -> None:
    model = onnx.ModelProto.FromString(graph_with({"a": np.arange(3, dtype=np.float32)}).model)
    model.graph.initializer[0].float_data.extend([7, 8, 9])
    model.graph.initializer[0].raw_data = b"\xff" * 12
    weights = np.arange(3, dtype=np.float32).tobytes()
    graph = GraphBytes(model=model.SerializeToString(), weights=weights, weights_name="w.bin")
    (tensor,) = onnx.ModelProto.FromString(inlined(graph)).graph.initializer
    assert tensor.raw_data == weights
    assert not tensor.float_data


def test_an_own_tensor_of_the_same_name_is_left_alone() -> None:
    graph = graph_with({"inline": np.arange(3, dtype=np.float32)}, inline=np.arange(5, 8, dtype=np.float32))
    read = onnx.ModelProto.FromString(inlined(graph)).graph.initializer
    assert [onnx.numpy_helper.to_array(tensor).tolist() for tensor in read] == [[0, 1, 2], [5, 6, 7]]


def test_a_hostile_graph_is_refused_as_ever() -> None:
    graph = graph_with({"a": np.arange(3, dtype=np.float32)})
    elsewhere = GraphBytes(model=graph.model, weights=graph.weights, weights_name="other.bin")
    with pytest.raises(EngineError, match=r"'a' in 'w\.bin' instead of 'other\.bin'"):
        inlined(elsewhere)


@given(st.data())
def test_whatever_becomes_of_a_damaged_graph_nothing_is_outside_afterwards(data: st.DataObject) -> None:
    model, weights = graph_files("clean")
    damaged = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = inlined(GraphBytes(model=bytes(damaged), weights=weights, weights_name="weights.bin"))
    except EngineError:
        return
    assert external_tensors(GraphBytes(model=result, weights=None, weights_name=None)) == {}


def test_weights_are_copied_once() -> None:
    size = 2**25
    graph = graph_with({"a": np.zeros(size // 4, np.float32)})
    tracemalloc.start()
    try:
        result = inlined(graph)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < len(result) <= peak < 1.01 * size


def test_what_no_onnx_file_can_hold_is_refused_before_it_is_copied() -> None:
    shape = (2**15, 2**14 + 1)  # 2 GiB and a little, none of it in memory
    size = 4 * shape[0] * shape[1]
    tensor = onnx.TensorProto(name="a", dims=shape, data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    model = onnx.ModelProto(ir_version=10)
    model.opset_import.add(version=20)
    model.graph.initializer.append(tensor)
    file = os.memfd_create("weights")
    try:
        os.truncate(file, size)
        weights: Any = mmap.mmap(file, size, prot=mmap.PROT_READ)
    finally:
        os.close(file)
    with pytest.raises(
        EngineError, match=rf"at most {MAX_GRAPH_BYTES} bytes, and the graph has 21476\d+ with its weights"
    ) as caught:
        inlined(GraphBytes(model=model.SerializeToString(), weights=weights, weights_name="w.bin"))
    assert len(str(caught.value).splitlines()) == 1
