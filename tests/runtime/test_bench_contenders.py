"""Several bundles in one comparison, and a user's own ONNX file as its baseline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from click.testing import CliRunner

from runtime.bundles import graph_files, ours, write_bundle
from smart_runtime.bench.cli import main
from smart_runtime.bench.contenders import (
    Source,
    contenders,
    open_bundles,
    open_contender,
    read_baseline,
    reference,
)
from smart_runtime.errors import BundleError, EngineError, InputError

SHAPE = (3, 6, 4)
_TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
other ({dtype}[{shape}] picture) => ({dtype}[{batch}, 5] logits, {dtype}[{batch}, 3, 1, 1] means)
<{dtype}[3, 5] head = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}>
{{
    means = GlobalAveragePool(picture)
    flat = Flatten(means)
    logits = MatMul(flat, head)
}}
"""


def classifier(
    path: Path, *, shape: str = "N, 3, 6, 4", batch: str = "N", dtype: str = "float", external: str | None = None
) -> Path:
    """Write a classifier with names of its own; ``external`` is the file that its weights go to."""
    model = onnx.parser.parse_model(_TEXT.format(shape=shape, batch=batch, dtype=dtype))
    for tensor in model.graph.initializer:  # the parser writes numbers; only bytes can go to another file
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    if external is None:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    return path


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--blocks", "2", "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments), "--blocks", "2"])
    assert result.exit_code == 1, result.output
    assert result.output.count("\n") == 1
    return result.output


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second bundle, by its manifest of another precision."""
    folder = tmp_path_factory.mktemp("bundles") / "int8"
    return write_bundle(folder, change=lambda document: ours(document).update(precision="int8"))


def test_several_bundles_against_the_first_ones_dense(bundle: Path, int8: Path, tmp_path: Path) -> None:
    first, second = f"{bundle}/", str(int8)  # a "/" at the end is the user's too
    plot = tmp_path / "bench.svg"
    document = run(first, second, "--plot", plot)
    rows = document["rows"]
    names = ["dense", "clean", "robust"]
    assert [(row["bundle"], row["name"], row["precision"]) for row in rows] == [
        *((first, name, "fp32") for name in names),
        *((second, name, "int8") for name in names),
    ]
    assert [entry["bundle"] for entry in document["bundles"]] == [first, second]
    assert [entry["precision"] for entry in document["bundles"]] == ["fp32", "int8"]
    assert document["bundle_digest"] == document["bundles"][0]["digest"] != document["bundles"][1]["digest"]
    assert document["reference"] == {"bundle": first, "name": "dense"}
    assert [row["speedup"] for row in rows[:1]] == [1]
    for row in rows:
        assert row["speedup"] == pytest.approx(rows[0]["median_ms"] / row["median_ms"])
        assert row["mac_ratio"] == rows[0]["macs"] / row["macs"]
    drawn = plot.read_text(encoding="utf-8")
    assert "<!-- tiny: clean fp32 -->" in drawn
    assert "<!-- int8: dense int8 -->" in drawn
    assert "<!-- times as fast as tiny: dense fp32 (whisker: 95% interval) -->" in drawn


def test_the_first_bundle_decides_whether_there_is_a_reference(bundle: Path, tmp_path: Path) -> None:
    without = str(write_bundle(tmp_path / "b", baseline=False))
    for paths, row in (([without, str(bundle)], None), ([str(bundle), without], 0)):
        assert reference(contenders(open_bundles(paths), baseline=None)) == row


@pytest.mark.slow
def test_the_tables_of_several_bundles_in_a_real_process(bundle: Path, int8: Path, tmp_path: Path) -> None:
    baseline = classifier(tmp_path / "other.onnx")
    command = [sys.executable, "-m", "smart_runtime.bench.cli", "tiny", "int8", "--blocks", "2"]
    for path in (bundle, int8):
        (tmp_path / path.name).symlink_to(path)
    done = subprocess.run(
        [*command, "--baseline", str(baseline)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for words in ("bundle", "precision", "baseline", "speed-ups are against baseline", "switch in tiny: "):
        assert words in done.stdout


def test_bundles_of_other_images(bundle: Path, tmp_path: Path) -> None:
    grey = write_bundle(tmp_path / "grey", channels=1)
    said = refused(bundle, grey)
    assert said.startswith("error: expected bundles for images of one size, got 3 x 6 x 4 in ")
    assert "and 1 x 6 x 4 in " in said


def test_one_bundle_twice(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    for again in (str(bundle), f"{bundle}/", str(tmp_path / "link")):
        with pytest.raises(InputError, match="are the same bundle"):
            open_bundles([str(bundle), again])


def test_a_bundle_that_was_replaced_meanwhile(bundle: Path) -> None:
    source = Source(place=str(bundle), graph="clean", digest="another", shape=SHAPE)
    with pytest.raises(BundleError, match="expected one bundle at"):
        open_contender(source, engine="auto", batch=1, threads=1)


BASELINES: dict[str, tuple[dict[str, Any], int]] = {
    "free batch": ({}, 1),
    "batch of two": ({}, 2),
    "fixed batch": ({"shape": "2, 3, 6, 4", "batch": "2"}, 2),
    "free sides": ({"shape": "N, 3, height, width"}, 1),
    "unnamed sides": ({"shape": "?, ?, ?, ?", "batch": "?"}, 2),
    "external data": ({"external": "other.data"}, 1),
}


@pytest.mark.parametrize(("options", "batch"), BASELINES.values(), ids=BASELINES.keys())
def test_baselines_that_fit(tmp_path: Path, options: dict[str, Any], batch: int) -> None:
    path = classifier(tmp_path / "other.onnx", **options)
    assert read_baseline(path).bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    source = Source(place=str(path), graph=None, digest=None, shape=SHAPE)
    engine = open_contender(source, engine="auto", batch=batch, threads=1)
    scores = engine.run(np.ones((batch, *SHAPE), np.float32))
    assert np.array_equal(scores, [[18, 21, 24, 27, 30]] * batch)  # the sums of the three columns of 1 to 15
    engine.close()


def test_a_baseline_is_the_first_row_and_the_reference(bundle: Path, tmp_path: Path) -> None:
    path = classifier(tmp_path / "other.onnx", shape="2, 3, height, width", batch="2", external="other.data")
    document = run(bundle, "--baseline", path, "--batch", 2)
    baseline, *rows = document["rows"]
    assert [row["name"] for row in rows] == ["dense", "clean", "robust"]
    for key in ("bundle", "precision", "macs", "parameters", "mac_ratio"):
        assert baseline[key] is None
    assert (baseline["name"], baseline["speedup"]) == ("baseline", 1)
    assert baseline["solo_median_ms"] > 0
    assert baseline["bytes"] == document["baseline"]["bytes"]
    for row in rows:
        assert row["speedup"] == pytest.approx(baseline["median_ms"] / row["median_ms"])
        assert row["mac_ratio"] is None
    assert document["reference"] == {"bundle": None, "name": "baseline"}
    assert (document["baseline"]["file"], len(document["baseline"]["sha256"])) == (str(path), 64)


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "other size": (
        {"shape": "N, 3, 8, 8"},
        r"takes float32 \(1, 3, 6, 4\) in .*, got picture tensor\(float\) \(N, 3, 8, 8\)",
    ),
    "other channels": ({"shape": "N, 1, 6, 4"}, r"got picture tensor\(float\) \(N, 1, 6, 4\)"),
    "rank": ({"shape": "N, 3, 6"}, r"got picture tensor\(float\) \(N, 3, 6\)"),
    "fixed batch": ({"shape": "2, 3, 6, 4", "batch": "2"}, r"got picture tensor\(float\) \(2, 3, 6, 4\)"),
    "other dtype": ({"dtype": "float16"}, r"got picture tensor\(float16\)"),
}


@pytest.mark.parametrize(("options", "said"), MISFITS.values(), ids=MISFITS.keys())
def test_a_baseline_that_does_not_fit(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = classifier(tmp_path / "other.onnx", **options)
    source = Source(place=str(path), graph=None, digest=None, shape=SHAPE)
    with pytest.raises(EngineError, match=said) as caught:
        open_contender(source, engine="auto", batch=1, threads=1)
    assert "\n" not in str(caught.value)


def test_a_baseline_with_two_inputs(tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 20]> '
        "g (float[N, 3, 6, 4] a, float[N, 3, 6, 4] b) => (float[N, 3, 6, 4] c) { c = Add(a, b) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "two.onnx")
    source = Source(place=str(tmp_path / "two.onnx"), graph=None, digest=None, shape=SHAPE)
    with pytest.raises(EngineError, match=r"got a tensor\(float\) \(N, 3, 6, 4\) and b tensor\(float\)"):
        open_contender(source, engine="auto", batch=1, threads=1)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ("{ wide = Flatten (image) \n y = MatMul (wide, head) }", "could not run the graph"),
        ("{ y = Transpose <perm = [1, 0, 2, 3]> (image) }", r"expected scores of 1 images from .*, got \(3, 1, 6, 4\)"),
    ],
    ids=["free sizes that fit nothing", "no scores of images"],
)
def test_a_baseline_that_fails_when_it_runs(tmp_path: Path, nodes: str, said: str) -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 20]> g (float[N, C, H, W] image) => (y) '
        f"<float[2, 1] head = {{1, 2}}> {nodes}"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "other.onnx")
    source = Source(place=str(tmp_path / "other.onnx"), graph=None, digest=None, shape=SHAPE)
    with pytest.raises(EngineError, match=said):
        open_contender(source, engine="auto", batch=1, threads=1)


def test_files_that_are_no_baseline(bundle: Path, tmp_path: Path) -> None:
    assert "no ONNX file for the baseline at" in refused(bundle, "--baseline", tmp_path / "none.onnx")
    assert "no ONNX file for the baseline at" in refused(bundle, "--baseline", tmp_path)
    file = tmp_path / "other.onnx"
    for content in (b"not a graph", b"", b"\x0a\x05hello"):
        file.write_bytes(content)
        said = refused(bundle, "--baseline", file)
        assert "other.onnx' is no ONNX file; " in said or said.startswith(
            "error: ONNX Runtime did not accept the graph"
        )
    path = classifier(tmp_path / "split.onnx", external="split.data")
    (tmp_path / "split.data").unlink()
    with pytest.raises(InputError, match=r"no 'split\.data' beside .*split\.onnx'"):
        read_baseline(path)


@pytest.mark.parametrize("name", ["none.onnx", "."], ids=["nothing", "a directory"])
def test_a_baseline_that_went_away(tmp_path: Path, name: str) -> None:
    source = Source(place=str(tmp_path / name), graph=None, digest=None, shape=SHAPE)
    with pytest.raises(EngineError, match=r"ONNX Runtime did not accept the graph: .*; check the file"):
        open_contender(source, engine="auto", batch=1, threads=1)


def test_a_bundles_own_graph_is_a_baseline(bundle: Path) -> None:
    baseline = read_baseline(bundle / "dense/model.onnx")
    assert baseline.bytes == sum(map(len, graph_files("dense")))
