from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundles import CLASS_NAMES, manifest_document, masks_entry, ours
from smart_common.documents import MAX_DEPTH, parse_document
from smart_common.roles import Role
from smart_runtime.bundle.manifest import FORMAT_VERSION, Manifest, Target, parse_manifest
from smart_runtime.bundle.package import is_inside
from smart_runtime.errors import BundleError, PathError

Change = Callable[[dict[str, Any]], None]


def parse(document: object) -> Manifest:
    return parse_manifest(json.dumps(document).encode())


def test_every_field_arrives() -> None:
    document = manifest_document()
    manifest = parse(document)
    written = ours(document)
    assert (manifest.package_name, manifest.created_by, manifest.precision) == ("tiny", "smart-edge 0.1.0", "fp32")
    assert manifest.target == Target(name="cpu", profile="x86-cpu", kind="cpu")
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
    assert [graph.role for graph in manifest.graphs] == [None, Role.CLEAN, Role.ATTACKED], "by name"
    assert manifest.baseline is not None
    assert manifest.baseline.density is None
    assert manifest.baseline.metrics is None


def test_unknown_keys_are_ignored() -> None:
    document = manifest_document()
    ours(document)["later"] = {"anything": [1, 2]}
    ours(document)["paths"]["clean"]["later"] = None
    assert parse(document).graph("clean").name == "clean"


def test_a_path_has_the_role_that_is_written() -> None:
    document = manifest_document()
    ours(document)["paths"]["robust"]["role"] = "both"
    assert parse(document).paths["robust"].role is Role.BOTH
    ours(document)["paths"]["robust"]["role"] = "bold"
    with pytest.raises(BundleError, match=r'one of "clean", "attacked", "both" at .*role, got "bold"'):
        parse(document)


def test_masks_arrive_and_older_manifests_have_none() -> None:
    document = manifest_document()
    masks = parse(document).masks
    assert masks is not None
    assert (masks.mode, masks.origin, masks.budget, masks.union_density) == ("gradual", "ours", "uniform", 0.4)
    assert masks.overlap is not None
    assert masks.overlap.value == 2 / 6
    assert masks.overlap.chance == pytest.approx(2 / 6), "a half of 8 twice: 2 in both, 6 in either"
    ours(document)["masks"] |= {"mode": None, "origin": None, "overlap": None}
    masks = parse(document).masks
    assert masks is not None
    assert list(masks.lines()) == ["all paths together use 40.0% of the unmasked network's parameters"]
    del ours(document)["masks"]
    assert parse(document).masks is None


@pytest.mark.parametrize(
    "change",
    [
        {"both": 7},
        {"either": 9},
        {"either": 0},
        {"size": 0},
        {"kept": {}},
        {"kept": {"clean": 9}},
        {"kept": {"clean": 0}},
        {"name": "\x1b[2J"},
        {"both": True},
    ],
    ids=str,
)
def test_counts_of_masks_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    document = manifest_document()
    ours(document)["masks"] = masks_entry(**change)
    with pytest.raises(BundleError, match=r"masks\.overlap\.groups\[0\]"):
        parse(document)


def test_no_baseline() -> None:
    manifest = parse(manifest_document(baseline=False))
    assert manifest.baseline is None
    with pytest.raises(PathError, match="unknown graph 'dense'; the bundle has 'clean', 'robust'"):
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


def package(*keys: str, value: Any) -> Change:
    """Set a field of the part that ONNX Runtime's own reader acts on."""

    def change(document: dict[str, Any]) -> None:
        place = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def all_sides(channels: int, height: int, width: int) -> Change:
    def change(document: dict[str, Any]) -> None:
        ours(document)["input"] |= {"channels": channels, "height": height, "width": width}
        ours(document)["preprocessing"]["colour"] = None

    return change


def many_paths(count: int, *, length: int = 4) -> Change:
    def change(document: dict[str, Any]) -> None:
        clean, component = ours(document)["paths"]["clean"], document["components"]["clean"]
        names = ["clean", *(f"p{i:0{length - 1}}" for i in range(count - 1))]
        ours(document)["paths"] = dict.fromkeys(names, clean)
        document["components"] = dict.fromkeys(names, component)

    return change


def many_variants(count: int) -> Change:
    def change(document: dict[str, Any]) -> None:
        variants = document["components"]["clean"]["variants"]
        variants |= {f"v{i}": variants["cpu"] for i in range(count - 1)}

    return change


VARIANT = ("components", "clean", "variants", "cpu")
ORT = (*VARIANT, "executor_info", "ort")
# What ONNX Runtime's package reader takes options, libraries and files from, now or in a later version.
FOREIGN: dict[str, Change] = {
    "session options": package(*ORT, "session_options", value={"session.enable_profiling": "1"}),
    "provider options": package(*ORT, "provider_options", value=[{"library_path": "/x.so"}]),
    "custom operators": package(*ORT, "custom_ops_library", value="libown.so"),
    "external data": package(*ORT, "external_data", value="sha256:" + "0" * 64),
    "nothing under a strange key": package(*ORT, "later", value=None),
    "another executor": package(*VARIANT, "executor_info", "own", value={"model_file": "model.onnx"}),
    "options of a variant": package(*VARIANT, "session_options", value={}),
    "library of a variant": package(*VARIANT, "ep_library", value="libep.so"),
    "shared files of a component": package("components", "clean", "shared_files", value={}),
    "a package with absolute names": package("layout", value="installed"),
    "shared assets": package("shared_assets", value={}),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_a_package_could_bring_along_is_refused(change: Change) -> None:
    document = manifest_document()
    change(document)
    with pytest.raises(
        BundleError, match=r"expected only [a-z_, ]+ at (the document|components\.clean.*), got \""
    ) as caught:
        parse(document)
    assert str(caught.value).isprintable()


@given(keys=st.sampled_from([VARIANT, ORT, VARIANT[:2], VARIANT[:1], ()]), key=st.text(), value=st.none() | st.text())
def test_no_key_of_a_package_but_those_we_write(keys: tuple[str, ...], key: str, value: object) -> None:
    document = manifest_document()
    place: Any = document
    for step in keys:
        place = place[step]
    if key in place:
        return
    place[key] = value
    with pytest.raises(BundleError):
        parse(document)


WRONG: dict[str, tuple[Change, str]] = {
    "another schema": (package("schema_version", value="2.0"), 'expected one of "1.0" at schema_version'),
    "component elsewhere": (package("components", "clean", value="../component.json"), "an object at components.clean"),
    "no variants": (package("components", "clean", "variants", value={}), "1 to 16 variants"),
    "too many variants": (many_variants(17), "1 to 16 variants"),
    "provider of another type": (package(*VARIANT, "ep", value=["CPUExecutionProvider"]), "cpu.ep"),
    "provider that redraws a terminal": (package(*VARIANT, "ep", value="\x1b[2J"), "cpu.ep"),
    "model of an asset": (package(*ORT, "model_file", value="sha256:" + "0" * 64), "a file inside the bundle"),
    "variant above the bundle": (package(*VARIANT, "variant_directory", value="../clean"), "a file inside the bundle"),
    "too many paths": (many_paths(17), "at most 16 paths, got 17"),
    "path name without end": (many_paths(2, length=65), "a path name like 'clean'"),
    "too many channels": (all_sides(4097, 1, 1), "a whole number, 1 to 4096, at .*input.channels, got 4097"),
    "too high": (all_sides(1, 2**62, 1), "a whole number, 1 to 65536, at .*input.height"),
    "too wide": (all_sides(1, 1, 65_537), "a whole number, 1 to 65536, at .*input.width"),
    "too many numbers": (all_sides(3, 65_536, 1024), "at most 134217728 numbers, got 3 x 65536 x 1024"),
    "too many classes": (put("output", "classes", value=2**20 + 1), "1 to 1048576, at .*output.classes"),
    "text without end": (put("created_by", value="x" * 5000), "a printable text at .*created_by"),
    "class name without end": (put("class_names", value=["x" * 5000, *CLASS_NAMES[1:]]), "class_names"),
    "input that redraws a terminal": (put("input", "name", value="\x1b[2J"), "input.name"),
    "file name without end": (put("paths", "clean", "file", value="a/" * 1000 + "b"), "a file inside the bundle"),
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
    "density of more digits than are read": (put("paths", "clean", "density", value=10**400), "of 401 characters"),
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


@pytest.mark.parametrize(
    "change",
    [
        all_sides(4096, 1, 1),
        all_sides(1, 65_536, 2048),
        all_sides(1, 1, 65_536),
        many_paths(16),
        many_paths(2, length=64),
    ],
)
def test_numbers_at_their_bounds_are_taken(change: Change) -> None:
    document = manifest_document()
    change(document)
    parse(document)


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
        (b"[" * 200_000, "more than 64 levels"),
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b'["\\"", ' * 65 + b"]" * 65, "more than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 levels"),
        (b"9" * 10_000, "a number of 10000 characters"),
        (b"-" + b"9" * 2_000_000, "a number of 2000001 characters"),
        (b"0." + b"9" * 2_000_000, "a number of 2000002 characters"),
        (b" " * (16 * 2**20 + 1), "at most"),
    ],
    ids=[
        "empty",
        "bytes",
        "list",
        "double key",
        "NaN",
        "infinite",
        "deep",
        "deep and whole",
        "deep beside texts",
        "deep objects",
        "long number",
        "very long number",
        "long fraction",
        "huge",
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        parse_manifest(data)
    assert len(str(caught.value)) < 400


def test_brackets_in_texts_are_no_depth() -> None:
    document = manifest_document()
    ours(document)["created_by"] = "[{" * 100 + '\\"[\\' + "[" * 100
    assert parse(document).created_by == ours(document)["created_by"]


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(
    st.recursive(
        st.text('a"\\[]{}'), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text('"\\[{'), inner)
    ),
    st.integers(55, 70),
)
def test_the_depth_that_counts_is_that_of_the_document(value: Any, levels: int) -> None:
    for _ in range(levels):
        value = [value]
    data = json.dumps({"a": value}).encode()
    if 1 + depth_of(value) <= MAX_DEPTH:
        parse_document(data, damaged=BundleError)
    else:
        with pytest.raises(BundleError, match="more than 64 levels"):
            parse_document(data, damaged=BundleError)


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
