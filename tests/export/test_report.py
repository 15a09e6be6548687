"""What `smart-export build` and `check FILE.onnx` say of each layer, as a user sees it: real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from export.command import smart_export
from export.test_cli import refused
from export.test_structures import random_net
from reference import sparsity as oracle
from smart_devices import resolve_target
from smart_devices.roofline import NoEstimate
from smart_export.build import BuildResult, build_bundle
from smart_export.dla import DlaReport
from smart_export.folding import fold
from smart_export.layers import network_cost
from smart_export.report import attention, build_rows, build_tables, expectations, summary
from smart_export.sparsity import sparsity_of_onnx
from smart_export.stages import ExportedGraph
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.reference import ParityResult
from smart_train import Checkpoint
from smart_train.checkpoint.format import describe
from smart_train.masking.accounting import structure_report


def test_a_report_says_what_the_graphs_say(checkpoint_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = (checkpoint_file, "--target", "cpu", "-o", tmp_path / "bundle", "--report", report, "--json")
    done = smart_export(*arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "report.json"]
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["target"] == "cpu"
    manifest = Bundle.open(tmp_path / "bundle").manifest
    for name in ("clean", "robust"):
        row, graph = found["paths"][name], manifest.paths[name]
        assert tuple(row["layers"]) == graph.layers
        assert row["macs"] == graph.macs
        assert row["dense_macs"] == found["baseline"]["macs"] == sum(layer["dense_macs"] for layer in row["layers"])
        seen = {layer.name: layer for layer in sparsity_of_onnx(tmp_path / "bundle" / graph.file).layers}
        for layer in row["layers"]:
            other = seen[f"network.{layer['name']}"]
            assert other.zeros is not None
            assert (layer["macs"], layer["zeros"]) == (other.macs, other.zeros.zeros)
            assert (layer["two_four"], layer["why_not_two_four"]) == (other.zeros.holds, other.why_not)
            assert layer["why_no_gain"] == "cpu has no sparse tensor cores"
        inside = next(layer for layer in row["layers"] if layer["name"] == "blocks.0.conv1")
        assert (inside["structure"], inside["out_channels"], inside["dense_out_channels"]) == ("channel", 4, 8)
        assert inside["dense_macs"] == 2 * inside["macs"]


def test_the_masks_are_described_alike_everywhere(built: BuildResult, checkpoint: Checkpoint) -> None:
    """In the checkpoint's description, the export's report and the manifest."""
    said = describe(checkpoint)["masks"]
    assert said["mode"] == "gradual"
    assert said["origin"].startswith("smart-edge's own")
    assert said["overlap"]["groups"][0]["kept"] == {
        path: int(checkpoint.net.mask(path, 0).sum()) for path in checkpoint.net.path_names
    }
    assert summary(built)["masks"] == said
    manifest = Bundle.open(built.bundle).manifest
    assert manifest.masks is not None
    assert manifest.masks.record() == said


def test_padding_is_counted_and_pointed_out(padded_build: BuildResult) -> None:
    graph = padded_build.paths["clean"]
    layer = next(layer for layer in graph.cost.layers if layer.name == "blocks.0.conv1")
    assert (layer.kept_out_channels, layer.padded_out_channels, layer.out_channels) == (3, 1, 4)
    lines = ["clean: 1 channel of zeros fills 1 layer up to the target's alignment: blocks.0.conv1"]
    assert list(attention("clean", graph)) == lines
    assert summary(padded_build, layers=True)["paths"]["clean"]["attention"] == lines
    row = next(row for row in build_rows(graph, NoEstimate(reason="none")) if row[0] == "blocks.0.conv1")
    assert row[2:4] == ["8/8", "3+1/8"]


@pytest.mark.parametrize(
    ("structure", "words"), [("2:4", "in 2:4 without gain (too narrow"), ("unstructured", "that no engine skips")]
)
def test_zeros_among_weights_are_counted_and_their_use_is_said(structure: str, words: str) -> None:
    net = random_net(structure)
    folded = fold(net, path="robust")
    found = network_cost(
        folded,
        dense=net.path("robust"),
        input_shape=(1, 8, 8),
        target=resolve_target("jetson-orin"),
        structures={layer.name: layer for layer in structure_report(net, path="robust")},
    )
    for layer in found.layers:
        weight = folded.get_submodule(f"network.{layer.name}").weight
        assert isinstance(weight, torch.Tensor)
        assert (layer.weights, layer.zeros) == (weight.numel(), oracle.zeros(weight.detach().numpy()))
        violations = oracle.violations(weight.detach().numpy(), axis=1, n=2, m=4)
        assert layer.two_four == (violations == 0 and weight.shape[1] % 4 == 0)
    assert {layer.name: layer.why_dense for layer in found.layers if layer.why_dense} == net.dense_layers
    graph = ExportedGraph("robust", "", None, 0, found, ParityResult(0, 1, 1, 1), None, DlaReport(0, {}, {}))
    (line,) = attention("robust", graph)
    assert words in line
    assert line.startswith(f"robust: {len(net.weight_layers)} layers")


def test_a_build_prints_every_layer_once_where_the_paths_are_alike(checkpoint: Checkpoint, tmp_path: Path) -> None:
    built = build_bundle(checkpoint, output=tmp_path / "a", target=resolve_target("cpu"), baseline=False)
    ((title, rows, reasons),) = build_tables(built.paths, expectations(built))
    assert title == "clean, robust"
    assert rows == build_rows(built.paths["robust"], expectations(built)["robust"])
    assert "not 2:4, 1 input channel, no multiple of 4: conv" in reasons
    checkpoint.net.set_mask("robust", 0, torch.ones(8, dtype=torch.bool))
    built = build_bundle(checkpoint, output=tmp_path / "b", target=resolve_target("cpu"), baseline=False)
    assert [title for title, _, _ in build_tables(built.paths, expectations(built))] == ["clean", "robust"]


def test_the_command_prints_that_table(checkpoint_file: Path, tmp_path: Path) -> None:
    done = smart_export(checkpoint_file, "--target", "cpu", "--baseline", "none", "-o", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    assert "blocks.0.conv1" in done.stdout
    assert "not 2:4, 1 input channel, no multiple of 4: conv" in done.stdout


@pytest.mark.parametrize("place", ["no/such/report.json", "folder", "bundle/report.json"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    place: str, checkpoint_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    arguments = (checkpoint_file, "--target", "cpu", "-o", tmp_path / "bundle", "--report", tmp_path / place)
    if place.startswith("bundle"):
        (tmp_path / "bundle").mkdir()
    refused(smart_export("build", *arguments, "--force"))
    assert list((tmp_path / "folder").iterdir()) == []


def test_check_of_a_file_reports_its_layers(bundle: Path) -> None:
    file = bundle / "clean/model.onnx"
    done = smart_export("check", file, "--target", "jetson-orin", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    graph = Bundle.open(bundle).manifest.paths["clean"]
    assert (found["pattern"], found["target"], found["notes"]) == ("2:4", "jetson-orin", [])
    assert (found["macs"], found["parameters"]) == (graph.macs, graph.parameters)
    assert [layer["name"] for layer in found["layers"]] == [f"network.{layer['name']}" for layer in graph.layers]
    assert "too narrow" in found["layers"][0]["why_no_gain"]
    without = json.loads(smart_export("check", file, "--json").stdout)
    assert "why_no_gain" not in without["layers"][0]
    text = smart_export("check", file, "--pattern", "1:4")
    assert text.returncode == 0, text.stderr
    assert "network.blocks.0.conv1" in text.stdout
    assert "1:4" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FILE", "--source", "ckpt.pt"], "--source"),
        (["FILE", "--trust", "key.pub"], "--trust"),
        (["BUNDLE", "--target", "cpu"], "--target"),
        (["BUNDLE", "--pattern", "2:4"], "--pattern"),
        (["FILE", "--pattern", "4"], "N:M"),
        (["FILE", "--pattern", "4:2"], "0 < N < M"),
        (["FILE", "--target", "toaster"], "toaster"),
        (["ckpt.pt"], "ONNX"),
    ],
)
def test_check_refuses_what_makes_no_sense(
    arguments: list[str], words: str, bundle: Path, checkpoint_file: Path
) -> None:
    places = {"FILE": str(bundle / "clean/model.onnx"), "BUNDLE": str(bundle), "ckpt.pt": str(checkpoint_file)}
    assert words in refused(smart_export("check", *(places.get(a, a) for a in arguments)))


def test_check_of_a_file_without_its_weights_names_them(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "clean/model.onnx", tmp_path)
    assert onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph.node
    assert "weights.bin" in refused(smart_export("check", tmp_path / "model.onnx"))
