"""Graphs that give something else than scores, and one graph under two names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from runtime.bundles import (
    CHANNELS,
    CLASSES,
    HEIGHT,
    WIDTH,
    as_float,
    expected_scores,
    ours,
    random_images,
    write_bundle,
)
from smart_eval.bundles import BundlePaths
from smart_export import build_bundle
from smart_export.check import check_bundle
from smart_runtime import Bundle, BundleError, EngineError, SmartModel
from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.outputs import check_scores
from smart_train import load_checkpoint

FLOATS = as_float(random_images(4))
GREY = np.full((3, CHANNELS, HEIGHT, WIDTH), 0.25, np.float32)

# What follows the sum of each image, (N, 1): each keeps the signature, float32 (N, classes), that ONNX Runtime shows.
_BODIES = {
    "2N rows": "twice = Concat<axis = 0>(sums, sums)\n scores = MatMul(twice, row)",
    "no rows": "none = Slice(sums, zero, zero)\n scores = MatMul(none, row)",
    "9 columns": "no = ReduceMax<keepdims = 0>(nothing)\n whole = Cast<to = 7>(no)\n"
    " columns = Constant<value = int64[2] {1, 9}>()\n times = Add(columns, whole)\n scores = Tile(sums, times)",
    "one image's": "first = Slice(sums, zero, one)\n scores = MatMul(first, row)",
    "NaN": "scores = Div(nothing, nothing)",
    "infinity": "bright = MatMul(sums, row)\n scores = Div(bright, nothing)",
    # Nothing is wrong with black, which the first run shows, nor with a ramp; something is with what is dark grey.
    "NaN of grey": "half = Constant<value = float {18}>()\n apart = Sub(sums, half)\n far = Abs(apart)\n"
    " little = Constant<value = float {0.2}>()\n near = Sub(far, little)\n root = Sqrt(near)\n"
    " scores = MatMul(root, row)",
}

_TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
hostile (float[N, {channels}, {height}, {width}] image) => (float[N, {classes}] scores)
{{
    flat = Flatten(image)
    ones = Constant<value = float[{size}, 1] {{{ones}}}>()
    row = Constant<value = float[1, {classes}] {{{row}}}>()
    zero = Constant<value = int64[1] {{0}}>()
    one = Constant<value = int64[1] {{1}}>()
    sums = MatMul(flat, ones)
    all = MatMul(sums, row)
    nothing = Sub(all, all)
    {body}
}}
"""


def hostile(folder: Path, kind: str, *, path: str = "robust") -> Path:
    """A bundle whose ``path`` is a graph that gives ``kind``, with checksums that fit."""

    def bare(document: dict[str, Any]) -> None:
        ours(document)["paths"][path]["weights"] = None

    write_bundle(folder, change=bare)
    size = CHANNELS * HEIGHT * WIDTH
    text = _TEXT.format(
        channels=CHANNELS,
        height=HEIGHT,
        width=WIDTH,
        classes=CLASSES,
        size=size,
        ones=", ".join(["1"] * size),
        row=", ".join(map(str, range(1, CLASSES + 1))),
        body=_BODIES[kind],
    )
    model = onnx.parser.parse_model(text)
    (folder / path / "weights.bin").unlink()
    (folder / path / "model.onnx").write_bytes(model.SerializeToString())
    write_checksums(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("2N rows", r"scores of shape \(2, 5\) for 1 images of 5 classes"),
        ("no rows", r"scores of shape \(0, 5\) for 1 images"),
        ("9 columns", r"scores of shape \(1, 9\) for 1 images of 5 classes"),
        ("one image's", r"scores of shape \(1, 5\) for 2 images"),
        ("NaN", r"gave NaN among its scores of shape \(1, 5\)"),
        ("infinity", r"gave (NaN|infinity) among its scores of shape"),
    ],
)
def test_a_graph_that_gives_no_scores_is_refused_at_load_and_reload(tmp_path: Path, kind: str, words: str) -> None:
    place = hostile(tmp_path / "hostile", kind)
    words = f"the graph 'robust' .*{words}"
    with pytest.raises(EngineError, match=words.replace(".*gave", "gave").replace(".*scores of", "gave scores of")):
        SmartModel.load(place, threads=1)
    with SmartModel.load(write_bundle(tmp_path / "good"), threads=1, memory="on-demand") as model:
        model.reload(place)  # the path is not loaded yet: on demand it is refused when it is
        with pytest.raises(EngineError, match="the graph 'robust' gave"):
            model.switch("robust")
        assert model.path == "clean"
        np.testing.assert_allclose(model(FLOATS), expected_scores("clean", FLOATS), atol=1e-6)


def test_what_a_graph_gives_later_is_refused_at_the_call(tmp_path: Path) -> None:
    place = hostile(tmp_path / "hostile", "NaN of grey")
    with SmartModel.load(place, path="robust", threads=1) as model:
        assert np.isfinite(model(FLOATS)).all()
        with pytest.raises(EngineError, match=r"^the graph 'robust' gave NaN among its scores of shape \(3, 5\); "):
            model(GREY)
        with pytest.raises(EngineError, match="the graph 'robust' gave NaN"):
            model.classify(np.full((HEIGHT, WIDTH, CHANNELS), 64, np.uint8))
        assert model.stats.paths["robust"].errors == 2
        assert np.isfinite(model(FLOATS)).all()


@pytest.mark.parametrize("kind", ["2N rows", "9 columns", "no rows"])
def test_the_other_readers_of_graphs_refuse_them_too(tmp_path: Path, kind: str) -> None:
    place = hostile(tmp_path / "hostile", kind)
    with pytest.raises(EngineError, match="the graph 'robust' gave scores of shape"):
        BundlePaths(Bundle.open(place), source=None).path("robust")(torch.from_numpy(FLOATS))
    with pytest.raises(EngineError, match="the graph 'robust' gave scores of shape"):
        check_bundle(place)


def test_large_scores_are_scores(recwarn: pytest.WarningsRecorder) -> None:
    largest = np.finfo(np.float32).max
    for row in ([largest] * 5, [largest, -largest, 0, 1, 1e-45], [1e30] * 5):
        for count in (1, 100):  # both ways of looking
            check_scores(np.array([row] * count, np.float32), images=count, classes=5, name="clean")
    assert not recwarn


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 2, 100])
def test_one_bad_number_anywhere_is_found(bad: float, count: int) -> None:
    for place in range(0, count * 5, max(1, count // 3)):
        scores = np.full((count, 5), np.finfo(np.float32).max)
        scores.flat[place] = bad
        with pytest.raises(EngineError, match=rf"among its scores of shape \({count}, 5\)"):
            check_scores(scores, images=count, classes=5, name="clean")
    both = np.array([[np.inf, -np.inf, 0, 0, 0]] * count, np.float32)
    with pytest.raises(EngineError, match="gave infinity among"):
        check_scores(both, images=count, classes=5, name="clean")


def copy_clean(folder: Path) -> None:
    shutil.rmtree(folder / "robust")
    shutil.copytree(folder / "clean", folder / "robust")
    write_checksums(folder)


def name_clean_twice(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_bytes())
    paths, components = ours(document)["paths"], document["components"]
    paths["robust"] |= {key: paths["clean"][key] for key in ("file", "weights", "bytes")}
    components["robust"] = components["clean"]
    (folder / "manifest.json").write_text(json.dumps(document))
    shutil.rmtree(folder / "robust")
    write_checksums(folder)


@pytest.mark.parametrize(("change", "refused"), [(copy_clean, True), (name_clean_twice, False)])
def test_one_graph_under_two_roles(tmp_path: Path, change: Callable[[Path], None], refused: bool) -> None:
    """A copy is refused; a manifest that names one file for both says that they are one."""
    place = write_bundle(tmp_path / "bundle")
    change(place)
    if refused:
        said = r"^'robust/model.onnx' of the path 'robust' is a copy of 'clean/model.onnx' of the path 'clean', and "
        for opened in (SmartModel.load, check_bundle, Bundle.open):
            with pytest.raises(BundleError, match=said):
                opened(place)
        return
    with SmartModel.load(place, path="robust", threads=1) as model:
        np.testing.assert_allclose(model(FLOATS), expected_scores("clean", FLOATS), atol=1e-6)


def test_an_export_of_two_equal_paths_names_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smart_export.graph._is_reusable", lambda *_: False)  # as for a network with grouped layers
    checkpoint = load_checkpoint(Path(__file__).parents[1] / "formats/first/channel.pt")
    net = checkpoint.net
    net.path("robust").load_state_dict(net.path("clean").state_dict())
    for group, mask in enumerate(net.masks("clean")):
        net.set_mask("robust", group, mask)
    built = build_bundle(checkpoint, output=tmp_path / "bundle", target="x86-cpu", max_drop=1.0, baseline=False)
    manifest = Bundle.open(built.bundle).manifest
    paths = manifest.paths
    assert manifest.reference is not None
    assert manifest.reference.scores == dict.fromkeys(paths, "clean/reference-scores.npy")
    assert paths["robust"].files == paths["clean"].files == ("clean/model.onnx", "clean/weights.bin")
    assert not (built.bundle / "robust").exists()
    with SmartModel.load(built.bundle, threads=1) as model:
        images = checkpoint.samples.images[:4].numpy()
        np.testing.assert_array_equal(model(images), SmartModel.load(built.bundle, path="robust", threads=1)(images))
    assert set(check_bundle(built.bundle, source=checkpoint).agreements) == {"clean", "robust"}
