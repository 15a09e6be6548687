"""An int8 bundle was shown with the accuracies of its fp32 paths, and nothing said whose they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from eval.reports import Parsed, model, report
from eval.results import bench_result, export_result
from runtime.bundles import ours, write_bundle
from smart_eval.page.included import read_included
from smart_eval.page.page import render
from smart_runtime.bench.cli import main as smart_bench
from smart_runtime.bundle.accuracies import GRAPH, MASKED_PATH, accuracies, deployed
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.cli import main as smart_run

PAIR = {"before": 0.95, "after": 0.875, "drop": 0.075, "low": 0.0, "high": 0.1, "examples": 128}


def int8(document: dict[str, Any]) -> None:
    part = ours(document)
    part.update(precision="int8", quantization={"recipe": "cpu"})
    part["gate"] = {
        "source": "samples",
        "engine": "onnxruntime-cpu 1.30",
        "attack": "pgd10x1",
        "eps": 0.1,
        "images": 128,
    }
    for path in part["paths"].values():
        path["gate"] = {"clean_accuracy": PAIR, "robust_accuracy": PAIR | {"after": 0.375}}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "int8", change=int8)


def test_info_has_a_line_for_the_masked_path_and_one_for_the_graph(bundle: Path) -> None:
    shown = CliRunner().invoke(smart_run, ["info", str(bundle)]).stdout
    lines = [line.split("│")[1:-1] for line in shown.splitlines() if "clean  " in line and "smart-" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        [
            "clean",
            "fp32 masked path, torch",
            "smart-train",
            "256 of the validation split",
            "pgd20x1, eps 0.3",
            "0.990",
            "0.090",
        ],
        [
            "clean",
            "int8 graph, onnxruntime-cpu 1.30",
            "smart-export",
            "128 of the checkpoint's samples",
            "pgd10x1, eps 0.1, made on the masked path",
            "0.875",
            "0.375",
        ],
    ]
    (dense,) = [line for line in shown.splitlines() if "not trained" in line]
    assert "dense" in dense
    found = json.loads(CliRunner().invoke(smart_run, ["info", str(bundle), "--json"]).stdout)["accuracies"]
    assert [(one["path"], one["of"], one["precision"]) for one in found] == [
        (path, of, precision)
        for path in ("clean", "robust")
        for of, precision in (("masked path", "fp32"), ("graph", "int8"))
    ]
    assert {(one["by"], one["images"]) for one in found} == {("smart-train", 256), ("smart-export", 128)}


def test_what_stands_for_a_graph_is_its_own(bundle: Path, tmp_path: Path) -> None:
    own = deployed(Bundle.open(bundle).manifest, "robust")
    assert own is not None
    assert (own.of, own.clean_accuracy) == (GRAPH, 0.875)
    usual = deployed(Bundle.open(write_bundle(tmp_path / "fp32")).manifest, "robust")
    assert usual is not None
    assert (usual.of, usual.clean_accuracy) == (MASKED_PATH, 0.95)


def test_a_plot_names_what_each_accuracy_is_of(bundle: Path, tmp_path: Path) -> None:
    fp32, plot = write_bundle(tmp_path / "fp32"), tmp_path / "plot.svg"
    done = CliRunner().invoke(smart_bench, [str(fp32), str(bundle), "--blocks", "2", "--plot", str(plot), "--json"])
    assert done.exit_code == 0, done.output
    drawn = plot.read_text(encoding="utf-8")
    assert "<!-- of the fp32 masked path, torch; by smart-train on 256 of the validation split -->" in drawn
    assert (
        "<!-- of the int8 graph, onnxruntime-cpu 1.30; by smart-export on 128 of the checkpoint's samples -->" in drawn
    )
    found = json.loads(done.stdout)["accuracies"]
    assert [one["of"] for one in found[str(bundle)]] == ["masked path", "graph"] * 2


def test_what_a_strangers_manifest_has_under_wrong_types_is_left_out(tmp_path: Path) -> None:
    def strange(document: dict[str, Any]) -> None:
        ours(document)["gate"] = {"engine": 3, "source": "\x1b[2J", "attack": [], "eps": "x"}
        for path in ours(document)["paths"].values():
            path["gate"] = {"clean_accuracy": {"after": "0.9", "examples": -1}, "robust_accuracy": [1]}
            path["metrics"] = {"clean_accuracy": 7, "robust_accuracy": True, "examples": 1.5}

    folder = write_bundle(tmp_path / "b", change=strange)
    for one in accuracies(Bundle.open(folder).manifest):
        assert (one.clean_accuracy, one.robust_accuracy, one.images, one.eps) == (None, None, None, None)
        assert one.data is None or one.data.isprintable()
    assert CliRunner().invoke(smart_run, ["info", str(folder)]).exit_code == 0


def test_the_page_says_whose_accuracies_stand_beside_an_int8_latency(tmp_path: Path) -> None:
    bench, export = bench_result(), export_result()
    for row in bench["rows"]:
        row["precision"] = "int8"
    export["judged_by"] = {"source": "samples", "images": 128, "attack": "pgd10x1", "eps": 0.1, "engine": "ort 1"}
    files = [tmp_path / "bench.json", tmp_path / "export.json"]
    for file, document in zip(files, (bench, export), strict=True):
        file.write_text(json.dumps(document), encoding="utf-8")
    words = Parsed(render(report(model("one.pt"), included=read_included(files)))).text
    beside = words[words.index("On the device") :]
    assert "cleanint890.0%fp32 masked path10.0%fp32 masked path" in beside
    assert "Accuracies of one.pt are of the fp32 masked paths (torch) on 10 test images, by smart-eval." in beside
    assert (
        "to the int8 graph, by smart-export on 128 images of samples, pgd10x1 made on the masked path, ort 1" in beside
    )
    assert "Accuracies are those of the fp32 masked paths (torch) on 10 test images, measured by smart-eval." in words
    graph = Parsed(render(report(model("b", kind="bundle", precision="int8", engine="onnxruntime-cpu"))))
    assert "Accuracies are those of the int8 graphs (onnxruntime-cpu) on 10 test images" in graph.text
    assert "int8 graph, onnxruntime-cpu" in graph.text[graph.text.index("Every attack") :]
