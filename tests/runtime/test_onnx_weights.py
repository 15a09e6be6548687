"""Our little reader of ONNX files against the onnx package's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.numpy_helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.bundles import graph_files, weights_of
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import AUTO, create_engine
from smart_runtime.engines.onnx_weights import external_locations, external_tensors
from smart_runtime.errors import EngineError

DTYPES = ["<f4", "u1", "i1", "<u2", "<i2", "<i4", "<i8", "?", "<f2", "<f8", "<u4", "<u8"]


def graph_with(tensors: dict[str, Any], *, gap: int = 0, inline: Any = None) -> GraphBytes:
    """A model whose tensors lie one after the other in the weights, ``gap`` bytes apart."""
    model = onnx.ModelProto(ir_version=10, producer_name="test")
    model.opset_import.add(version=20)
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
    with pytest.raises(EngineError, match="expected a plain ONNX graph with its tensors in its weights file"):
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
        assert "expected a plain ONNX graph" in str(error)  # noqa: PT017  # both outcomes are right


@given(st.data())
def test_a_damaged_graph_gives_tensors_or_our_error(data: st.DataObject) -> None:
    model, weights = graph_files("clean")
    damaged = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    try:
        external_tensors(GraphBytes(model=bytes(damaged), weights=weights, weights_name="weights.bin"))
    except EngineError as error:
        assert "expected a plain ONNX graph" in str(error)  # noqa: PT017  # both outcomes are right


def leaky(name: str) -> onnx.ModelProto:
    """A valid model with a tensor in secret.bin of the working directory; ONNX Runtime 1.32 runs it and gives that."""
    secret = onnx.TensorProto(name="s", dims=[2], data_type=onnx.TensorProto.FLOAT)
    secret.data_location = onnx.TensorProto.EXTERNAL
    for key, entry in (("location", "secret.bin"), ("offset", "0"), ("length", "8")):
        secret.external_data.add(key=key, value=entry)
    make_node, opsets = onnx.helper.make_node, [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("own", 1)]
    scores = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [2])
    constant = make_node("Constant", [], ["scores"], value=secret)
    inner = onnx.helper.make_graph([make_node("Identity", ["s"], ["scores"])], "then", [], [scores], [secret])
    function = onnx.helper.make_function("own", "Secret", [], ["scores"], [constant], opsets[:1])
    yes = onnx.numpy_helper.from_array(np.array(True), name="yes")
    nodes = {
        "If": make_node("If", ["yes"], ["scores"], then_branch=inner, else_branch=inner),
        "Constant": constant,
        "function": make_node("Secret", [], ["scores"], domain="own"),
    }
    graph = onnx.helper.make_graph([nodes[name]], "main", [], [scores], [yes])
    functions = [function] if name == "function" else []
    return onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


@pytest.mark.parametrize("weights", [b"12345678", None], ids=["weights", "no weights"])
@pytest.mark.parametrize("name", ["If", "Constant", "function"])
def test_a_graph_reads_no_file_outside_its_bundle(
    name: str, weights: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(np.array([4, 2], dtype=np.float32).tobytes())
    model = leaky(name)
    onnx.checker.check_model(model)
    graph = GraphBytes(
        model=model.SerializeToString(), weights=weights, weights_name=None if weights is None else "weights.bin"
    )
    inputs, outputs = InputSpec(name="image", channels=1, height=1, width=1), OutputSpec(name="scores", classes=2)
    said = {"If": "a graph inside a node", "Constant": "the external tensor 's' outside", "function": "a function"}
    with pytest.raises(EngineError, match=f"got {said[name]}"):
        create_engine(AUTO, graph, inputs=inputs, outputs=outputs)


def slot(message: Any, field: str) -> Any:
    """The message in a field of ``message``, a new one where the field repeats."""
    value = getattr(message, field)
    return value.add() if hasattr(value, "add") else value


def tensor_fields(message: Any, within: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every field below ``message`` that holds tensors, and a message with an external one right there."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None or field.message_type.name in within:
            continue
        if field.message_type.name == "TensorProto":
            found = [("", onnx.TensorProto(name="s", data_location=onnx.TensorProto.EXTERNAL))]
        else:
            found = list(tensor_fields(slot(type(message)(), field.name), (*within, message.DESCRIPTOR.name)))
        for rest, value in found:
            parent = type(message)()
            slot(parent, field.name).CopyFrom(value)
            yield f".{field.name}{rest}", parent


PLACES = dict(tensor_fields(onnx.ModelProto()))


@pytest.mark.parametrize("place", PLACES)
def test_an_external_tensor_is_refused_wherever_onnx_has_tensors(place: str) -> None:
    model = PLACES[place].SerializeToString()
    with pytest.raises(EngineError, match=r"got (.*'s'|a graph inside|a function|training|a sparse tensor)"):
        external_tensors(GraphBytes(model=model, weights=b"", weights_name="w.bin"))
    assert external_locations(model) == ("",), "and of a user's own file it is found"


def test_the_places_of_tensors_are_found() -> None:
    assert {".graph.initializer", ".graph.node.attribute.t", ".functions.node.attribute.sparse_tensors.values"} <= set(
        PLACES
    )


@pytest.mark.parametrize(
    "location", [b"\x01", b"\x81\x80\x80\x80\x10", b"\x01\x70\x02"], ids=["1", "2**32 + 1", "1, 2"]
)
def test_no_spelling_of_a_location_hides_it(location: bytes) -> None:
    """The second is 1 for protobuf, which keeps 32 bits, and so is the third, whose 2 it does not know."""
    tensor = b"\x08\x02" + b"\x70" + location
    assert onnx.TensorProto.FromString(tensor).data_location == onnx.TensorProto.EXTERNAL
    model = tensor
    for number in (5, 5, 1, 7):  # t of an attribute of a node of the graph of the model
        model = bytes([number << 3 | 2, len(model)]) + model
    with pytest.raises(EngineError, match="outside the main graph's initializers"):
        external_tensors(GraphBytes(model=model, weights=None, weights_name=None))


def test_no_field_number_hides_a_graph() -> None:
    hidden = b"\xba\x80\x80\x80\x10\x00"  # field 7 for protobuf, which keeps 32 bits, and 2**29 + 7 for others
    with pytest.raises(EngineError, match="which ONNX does not use"):
        external_tensors(GraphBytes(model=hidden, weights=None, weights_name=None))


def test_two_tensors_of_one_name_are_refused() -> None:
    graph = graph_with({"a": np.arange(3, dtype=np.float32)})
    model = onnx.ModelProto.FromString(graph.model)
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(EngineError, match="two external tensors called 'a'"):
        external_tensors(GraphBytes(model=model.SerializeToString(), weights=graph.weights, weights_name="w.bin"))


def test_a_graph_as_deep_as_it_likes_is_walked() -> None:
    model = onnx.TensorProto(name="s", data_location=onnx.TensorProto.EXTERNAL).SerializeToString()
    for number in (5, *[5, 1, 6] * 3000, 5, 1, 7):  # t; the attribute of a node of the graph of an attribute, and so on
        size = len(model)
        length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
        model = bytes([number << 3 | 2]) + length + model
    assert external_locations(model) == ("",)
    with pytest.raises(EngineError, match="a graph inside a node"):
        external_tensors(GraphBytes(model=model, weights=None, weights_name=None))


def plain() -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.ParseFromString(graph_files("clean")[0])
    return model


def loop() -> onnx.ModelProto:
    model = plain()
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], [], body=body))
    return model


def several_graphs() -> onnx.ModelProto:
    model = plain()
    graphs = [onnx.helper.make_graph([], "a", [], [])]
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("branches", graphs))
    return model


def function() -> onnx.ModelProto:
    model = plain()
    model.functions.add(name="Own", domain="own")
    return model


def training() -> onnx.ModelProto:
    model = plain()
    model.training_info.add()
    return model


def sparse() -> onnx.ModelProto:
    model = plain()
    model.graph.sparse_initializer.add()
    return model


def sparse_attribute() -> onnx.ModelProto:
    model = plain()
    model.graph.node[0].attribute.add(name="value", sparse_tensor=onnx.SparseTensorProto())
    return model


def session_options() -> onnx.ModelProto:
    model = plain()
    model.metadata_props.add(key="author", value="somebody")
    model.metadata_props.add(key="ort_config", value='{"session_options": {"enable_profiling": 1}}')
    return model


def context() -> onnx.ModelProto:
    """An engine of another library, in a file whose name the node gives."""
    model = plain()
    node = onnx.helper.make_node("EPContext", [], [], domain="com.microsoft", ep_cache_context="../../engine.bin")
    model.graph.node.append(node)
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (loop, "a graph inside a node"),
        (several_graphs, "a graph inside a node"),
        (function, "a function"),
        (training, "training information"),
        (sparse, "a sparse tensor"),
        (sparse_attribute, "a sparse tensor"),
        (session_options, "session options in the metadata 'ort_config'"),
        (context, "an operator of the domain 'com.microsoft'"),
    ],
)
def test_what_no_exported_classifier_has_is_refused(model: Callable[[], onnx.ModelProto], said: str) -> None:
    weights = graph_files("clean")[1]
    graph = GraphBytes(model=model().SerializeToString(), weights=weights, weights_name="weights.bin")
    with pytest.raises(EngineError, match=f"expected a plain ONNX graph .*, got {said}.*; export the bundle again"):
        external_tensors(graph)


def test_other_metadata_is_no_harm() -> None:
    model = plain()
    model.metadata_props.add(key="author", value="ort_config")
    weights = graph_files("clean")[1]
    read = external_tensors(GraphBytes(model=model.SerializeToString(), weights=weights, weights_name="weights.bin"))
    assert read.keys() == weights_of("clean").keys()


def test_session_options_in_a_graph_would_be_taken_and_are_not(tmp_path: Path) -> None:
    """What the refusal is for: with this variable, ONNX Runtime writes a profile because the graph says so."""
    model, weights = session_options().SerializeToString(), graph_files("clean")[1]
    (tmp_path / "weights.bin").write_bytes(weights)
    (tmp_path / "model.onnx").write_bytes(model)
    unguarded = "import onnxruntime; onnxruntime.InferenceSession('model.onnx')"
    guarded = (
        "from smart_runtime.bundle.bundle import GraphBytes\n"
        "from smart_runtime.engines import create_engine\n"
        "from smart_runtime.errors import EngineError\n"
        "from smart_runtime.bundle.manifest import InputSpec, OutputSpec\n"
        "files = [open(name, 'rb').read() for name in ('model.onnx', 'weights.bin')]\n"
        "graph = GraphBytes(model=files[0], weights=files[1], weights_name='weights.bin')\n"
        "spec = InputSpec(name='image', channels=3, height=6, width=4)\n"
        "try:\n"
        "    create_engine('auto', graph, inputs=spec, outputs=OutputSpec(name='scores', classes=5))\n"
        "except EngineError as error:\n"
        "    print(error)\n"
    )

    def profiles(code: str) -> tuple[str, list[str]]:
        environment = os.environ | {"ORT_LOAD_CONFIG_FROM_MODEL": "1"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        found = list(tmp_path.glob("onnxruntime_profile*"))
        for file in found:
            file.unlink()
        return done.stdout, [file.suffix for file in found]

    assert profiles(unguarded)[1] == [".json"]
    said, found = profiles(guarded)
    assert "ort_config" in said
    assert found == []


def test_a_message_stays_short_and_printable() -> None:
    model = plain()
    model.graph.node[0].domain = "\x1b[2J" + "x" * 1_000_000
    graph = GraphBytes(model=model.SerializeToString(), weights=None, weights_name=None)
    with pytest.raises(EngineError) as caught:
        external_tensors(graph)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, data: bytes) -> bytes:
    """A text, message or packed list of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def test_a_shape_of_very_many_sizes_is_refused_before_it_is_multiplied() -> None:
    """The product of a megabyte of sizes takes half a minute."""
    tensor = field(1, (b"\xff" * 8 + b"\x7f") * 100_000) + b"\x10\x01" + field(8, b"w")
    tensor += field(13, field(1, b"location") + field(2, b"weights.bin")) + b"\x70\x01"
    graph = GraphBytes(model=field(7, field(5, tensor)), weights=b"", weights_name="weights.bin")
    with pytest.raises(EngineError, match="more than 32 dimensions"):
        external_tensors(graph)


def test_a_graph_of_very_many_parts_is_refused_before_they_fill_the_memory() -> None:
    graph = GraphBytes(model=field(7, b"\x0a\x00" * 2**18), weights=b"", weights_name="weights.bin")
    with pytest.raises(EngineError, match="more than 131072 nodes, attributes and tensors"):
        external_tensors(graph)
