"""Our little reader of ONNX files against the onnx package's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.bundles import graph_files, weights_of
from smart_runtime.bundle import GraphBytes
from smart_runtime.engines.onnx_weights import external_tensors
from smart_runtime.errors import EngineError

DTYPES = ["<f4", "u1", "i1", "<u2", "<i2", "<i4", "<i8", "?", "<f2", "<f8", "<u4", "<u8"]


def graph_with(tensors: dict[str, Any], *, gap: int = 0, inline: Any = None) -> GraphBytes:
    """A model whose tensors lie one after the other in the weights, ``gap`` bytes apart."""
    model = onnx.ModelProto(ir_version=10, producer_name="test")
    weights = b""
    for name, value in tensors.items():
        tensor = onnx.TensorProto(
            name=name, dims=value.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        )
        tensor.data_location = onnx.TensorProto.EXTERNAL
        weights += b"\0" * gap
        for key, entry in (("location", "w.bin"), ("offset", len(weights)), ("length", value.nbytes)):
            tensor.external_data.add(key=key, value=str(entry))
        weights += value.tobytes()
        model.graph.initializer.append(tensor)
    if inline is not None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(inline, name="inline"))
    return GraphBytes(model=model.SerializeToString(), weights=weights, weights_name="w.bin")


@given(
    hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    st.integers(0, 9),
)
def test_tensors_of_every_dtype_come_back(value: Any, gap: int) -> None:
    other = np.arange(5, dtype=np.float32)
    read = external_tensors(graph_with({"a": value, "b/ü": other}, gap=gap, inline=other))
    assert list(read) == ["a", "b/ü"]  # a tensor inside the graph is none of ours
    assert read["a"].dtype == value.dtype
    assert read["a"].shape == value.shape
    assert read["a"].tobytes() == value.tobytes()
    assert read["a"].flags.aligned
    assert np.array_equal(read["b/ü"], other)


@pytest.mark.parametrize("name", ["clean", "robust", "dense"])
def test_the_tensors_of_a_real_graph(name: str) -> None:
    model, weights = graph_files(name)
    read = external_tensors(GraphBytes(model=model, weights=weights, weights_name="weights.bin"))
    expected = weights_of(name)
    assert read.keys() == expected.keys()
    assert all(np.array_equal(read[key], expected[key]) for key in expected)


def test_offset_and_length_may_be_left_out() -> None:
    graph = graph_with({"a": np.arange(3, dtype=np.float32)})
    model = onnx.ModelProto.FromString(graph.model)
    del model.graph.initializer[0].external_data[1:]
    (value,) = external_tensors(
        GraphBytes(model=model.SerializeToString(), weights=graph.weights, weights_name="w.bin")
    ).values()
    assert np.array_equal(value, np.arange(3, dtype=np.float32))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "../w.bin"),
        ("location", "/etc/passwd"),
        ("offset", "-4"),
        ("offset", "4"),
        ("offset", "9" * 30),
        ("offset", "x"),
        ("length", "8"),
        ("length", "16"),
    ],
)
def test_a_tensor_outside_its_weights_is_refused(key: str, value: str) -> None:
    model = onnx.ModelProto.FromString(graph_with({"a": np.arange(3, dtype=np.float32)}).model)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    with pytest.raises(EngineError, match="expected an ONNX graph with its tensors in its weights file"):
        external_tensors(GraphBytes(model=model.SerializeToString(), weights=b"\0" * 12, weights_name="w.bin"))


@pytest.mark.parametrize("dims", [[-1, 3], [2**62, 4], [4]])
def test_a_shape_that_does_not_fit_is_refused(dims: list[int]) -> None:
    model = onnx.ModelProto.FromString(graph_with({"a": np.arange(3, dtype=np.float32)}).model)
    model.graph.initializer[0].dims[:] = dims
    with pytest.raises(EngineError):
        external_tensors(GraphBytes(model=model.SerializeToString(), weights=b"\0" * 12, weights_name="w.bin"))


def test_a_data_type_that_numpy_lacks_is_refused() -> None:
    model = onnx.ModelProto.FromString(graph_with({"a": np.arange(3, dtype=np.float32)}).model)
    model.graph.initializer[0].data_type = onnx.TensorProto.BFLOAT16
    with pytest.raises(EngineError, match="data type 16"):
        external_tensors(GraphBytes(model=model.SerializeToString(), weights=b"\0" * 12, weights_name="w.bin"))


@given(st.binary(max_size=100))
def test_any_bytes_give_tensors_or_our_error(data: bytes) -> None:
    try:
        external_tensors(GraphBytes(model=data, weights=b"\0" * 12, weights_name="w.bin"))
    except EngineError as error:
        assert "expected an ONNX graph" in str(error)  # noqa: PT017  # both outcomes are right


@given(st.data())
def test_a_damaged_graph_gives_tensors_or_our_error(data: st.DataObject) -> None:
    model, weights = graph_files("clean")
    damaged = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    try:
        external_tensors(GraphBytes(model=bytes(damaged), weights=weights, weights_name="weights.bin"))
    except EngineError as error:
        assert "expected an ONNX graph" in str(error)  # noqa: PT017  # both outcomes are right
