from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundles import CLASS_NAMES, manifest_document, ours
from smart_runtime.errors import BundleError, PathError
from smart_runtime.manifest import FORMAT_VERSION, Manifest, is_inside, parse_manifest

Change = Callable[[dict[str, Any]], None]


def parse(document: object) -> Manifest:
    return parse_manifest(json.dumps(document).encode())


def test_every_field_arrives() -> None:
    document = manifest_document()
    manifest = parse(document)
    written = ours(document)
    assert (manifest.package_name, manifest.created_by, manifest.precision) == ("tiny", "smart-edge 0.1.0", "fp32")
    assert (manifest.target.name, manifest.target.profile) == ("jetson-orin", "jetson-agx-orin-64gb")
    assert manifest.default_path == "clean"
    assert manifest.input.shape == (3, 6, 4)
    assert manifest.output.classes == 5
    assert list(manifest.class_names) == CLASS_NAMES
    assert manifest.preprocessing.colour == "RGB"
    assert list(manifest.paths) == ["clean", "robust"]
    assert [graph.name for graph in manifest.graphs] == ["dense", "clean", "robust"]
    assert dict(manifest.training) == written["training"]
    clean = manifest.graph("clean")
    assert clean.files == ("clean/model.onnx", "clean/weights.bin")
    assert clean.weights_name == "weights.bin"
    assert clean.density == 0.5
    assert [dict(layer) for layer in clean.layers] == written["paths"]["clean"]["layers"]
    assert clean.metrics == written["paths"]["clean"]["metrics"]
    assert manifest.baseline is not None
    assert manifest.baseline.density is None
    assert manifest.baseline.metrics is None


def test_unknown_keys_are_ignored() -> None:
    document = manifest_document()
    ours(document)["later"] = {"anything": [1, 2]}
    ours(document)["paths"]["clean"]["later"] = None
    assert parse(document).graph("clean").name == "clean"


def test_no_baseline() -> None:
    manifest = parse(manifest_document(baseline=False))
    assert manifest.baseline is None
    with pytest.raises(PathError, match="expected one of 'clean', 'robust', got 'dense'"):
        manifest.graph("dense")


def test_weights_may_be_inside_the_graph() -> None:
    document = manifest_document()
    ours(document)["paths"]["clean"]["weights"] = None
    clean = parse(document).graph("clean")
    assert clean.files == ("clean/model.onnx",)
    assert clean.weights_name is None


def test_a_newer_format_is_refused_before_all_else() -> None:
    newer = {"additional_metadata": {"smart_edge": {"format_version": FORMAT_VERSION + 1}}}
    with pytest.raises(BundleError, match="expected bundle format 1 or older, got 2; install a newer smart-edge"):
        parse(newer)


def put(*keys: str, value: Any) -> Change:
    """Set a field of our own part."""

    def change(document: dict[str, Any]) -> None:
        place = ours(document)
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def drop(*keys: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        place = ours(document)
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


def rename_clean(name: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        for place in (document["components"], ours(document)["paths"]):
            place[name] = place.pop("clean")
        ours(document)["default_path"] = name

    return change


def swap_components(document: dict[str, Any]) -> None:
    parts = document["components"]
    parts["clean"], parts["robust"] = parts["robust"], parts["clean"]


def drop_component(document: dict[str, Any]) -> None:
    del document["components"]["robust"]


def add_component(document: dict[str, Any]) -> None:
    document["components"]["dense"] = document["components"]["clean"]


WRONG: dict[str, tuple[Change, str]] = {
    "version of another type": (put("format_version", value=True), "format_version"),
    "version zero": (put("format_version", value=0), "format_version"),
    "no paths": (put("paths", value={}), "default_path"),
    "paths of another type": (put("paths", value=[]), "paths"),
    "path without fields": (put("paths", "clean", value={}), "paths.clean.file"),
    "unknown default path": (put("default_path", value="fast"), "default_path"),
    "dense as a path": (rename_clean("dense"), "reserved"),
    "path name in capitals": (rename_clean("Clean"), "a path name like 'clean'"),
    "path name with a slash": (rename_clean("a/b"), "a path name like 'clean'"),
    "path name with a line end": (rename_clean("clean\n"), "a path name like 'clean'"),
    "path name that redraws a terminal": (rename_clean("\x1b[2J"), r"paths\.'\\x1b\[2J'"),
    "file above the bundle": (put("paths", "clean", "file", value="../model.onnx"), "a file inside the bundle"),
    "absolute file": (put("paths", "clean", "file", value="/model.onnx"), "a file inside the bundle"),
    "file with a drive": (put("paths", "clean", "file", value="c:model.onnx"), "a file inside the bundle"),
    "weights elsewhere": (put("paths", "clean", "weights", value="robust/weights.bin"), "a file beside"),
    "negative MACs": (put("paths", "clean", "macs", value=-1), "paths.clean.macs"),
    "MACs as a fraction": (put("paths", "clean", "macs", value=1.5), "paths.clean.macs"),
    "parameters without end": (put("paths", "clean", "parameters", value=2**70), "paths.clean.parameters"),
    "density above one": (put("paths", "clean", "density", value=1.5), "paths.clean.density"),
    "density that no float holds": (put("paths", "clean", "density", value=10**400), "paths.clean.density"),
    "layers of another type": (put("paths", "clean", "layers", value=["conv"]), r"layers\[0\]"),
    "metrics of another type": (put("paths", "clean", "metrics", value=3), "metrics"),
    "baseline with another name": (put("baseline", "name", value="big"), "baseline.name"),
    "other dtype": (put("input", "dtype", value="float16"), "input.dtype"),
    "other layout": (put("input", "layout", value="NHWC"), "input.layout"),
    "other range": (put("input", "range", value=[0, 255]), "input.range"),
    "no channels": (put("input", "channels", value=0), "input.channels"),
    "channels as text": (put("input", "channels", value="3"), "input.channels"),
    "too few class names": (put("class_names", value=["ant"]), "5 names, one a class"),
    "class names of another type": (put("class_names", value=[1, 2, 3, 4, 5]), "class_names"),
    "class name that redraws a terminal": (put("class_names", value=["\x1b[2J", *CLASS_NAMES[1:]]), "class_names"),
    "grey for three channels": (put("preprocessing", "colour", value="L"), "colour"),
    "other crop": (put("preprocessing", "crop", value="none"), "crop"),
    "no training record": (drop("training"), "training"),
    "no input": (drop("input"), "expected an object at additional_metadata.smart_edge.input, got nothing"),
    "components swapped": (swap_components, "the graph 'clean/model.onnx' as for the path 'clean'"),
    "component missing": (drop_component, "components"),
    "component too many": (add_component, "components"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG.keys())
def test_wrong_fields_are_refused_by_name(change: Change, said: str) -> None:
    document = manifest_document()
    change(document)
    with pytest.raises(BundleError, match=said) as caught:
        parse(document)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[]", "an object at the document"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "larger than any number"),
        (b"[" * 200_000, "RecursionError"),
        (b"9" * 10_000, "JSON"),
        (b" " * (16 * 2**20 + 1), "at most"),
    ],
    ids=["empty", "bytes", "list", "double key", "NaN", "infinite", "deep", "long number", "huge"],
)
def test_what_is_no_manifest_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        parse_manifest(data)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    keys = (
        list(document)
        if isinstance(document, dict)
        else list(range(len(document)))
        if isinstance(document, list)
        else []
    )
    return [*([at] if at else []), *(place for key in keys for place in places(document[key], (*at, key)))]


PLACES = places(manifest_document())


@given(place=st.sampled_from(PLACES), value=JSON_VALUES)
def test_any_value_anywhere_is_taken_or_refused_in_our_words(place: tuple[Any, ...], value: Any) -> None:
    document: Any = manifest_document()
    spot = document
    for key in place[:-1]:
        spot = spot[key]
    spot[place[-1]] = value
    try:
        parse(document)
    except BundleError as error:
        assert "expected" in str(error)  # noqa: PT017  # both outcomes are right; the wrong one is another exception


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


@given(st.text(alphabet="ab./\\:\n\x00", max_size=8))
def test_a_name_that_is_inside_never_leads_out(name: str) -> None:
    root = Path("/root-of-bundle")
    if is_inside(name):
        assert (root / name).resolve().is_relative_to(root)
        assert (root / name).as_posix() == f"{root}/{name}"
