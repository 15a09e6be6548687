"""What an export says of the latency on its target: an estimate, marked as one, layer by layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.command import smart_export
from reference.roofline import peak_seconds
from smart_devices import resolve_target
from smart_devices.roofline import Estimate, NoEstimate
from smart_export.build import BuildResult
from smart_export.report import build_columns, build_rows, expectations, expected_latency, expected_lines, summary


def test_an_export_for_a_jetson_says_the_least_that_it_takes(built: BuildResult) -> None:
    estimates = expectations(built)
    assert list(estimates) == ["dense", "clean", "robust"]
    for name, found in estimates.items():
        graph = built.baseline if name == "dense" else built.paths[name]
        assert graph is not None
        assert isinstance(found, Estimate)
        layers = graph.cost.layers
        macs, weights = (np.array([getattr(layer, key) for layer in layers], float) for key in ("macs", "weights"))
        channels = np.array([layer.in_channels + layer.out_channels for layer in layers])
        # NVIDIA Jetson AGX Orin 64GB: 5.3 TFLOPS in fp32, 204.8 GB/s.
        seconds = peak_seconds(
            macs, weights, channels * macs / weights, ops_per_s=5.3e12, bytes_per_s=204.8e9, element=4
        )
        assert [layer.seconds for layer in found.layers] == pytest.approx(list(seconds))
        assert [layer.name for layer in found.layers] == [layer.name for layer in layers]
        assert (found.as_json()["basis"], found.batch) == ("peak", 1)
    dense, clean = estimates["dense"], estimates["clean"]
    assert isinstance(dense, Estimate)
    assert isinstance(clean, Estimate)
    assert dense.latency_ms > clean.latency_ms
    lines = list(expected_lines(estimates))
    assert lines[0].startswith(f"dense: at least {dense.latency_ms:.3g} ms (roofline estimate, not measured), ")
    assert lines[-1].startswith("expected by peaks of NVIDIA Jetson AGX Orin 64GB, highest clocks: fp32 at 5.3 TFLOPS")
    assert len(lines) == 4


def test_the_report_has_it_layer_by_layer(built: BuildResult) -> None:
    found = json.loads(json.dumps(summary(built, layers=True), allow_nan=False))
    for graph in (found["baseline"], *found["paths"].values()):
        expected = graph["expected"]
        assert (expected["measured"], expected["lower_bound"]) == (False, True)
        assert expected["latency_ms"] == pytest.approx(1e3 * sum(layer["seconds"] for layer in expected["layers"]))
        assert [layer["name"] for layer in expected["layers"]] == [layer["name"] for layer in graph["layers"]]
        assert {layer["bound"] for layer in expected["layers"]} <= {"compute", "memory"}
    assert "layers" not in summary(built)["paths"]["clean"]["expected"]
    rows = build_rows(built.paths["clean"], expectations(built)["clean"])
    at = build_columns(built.target).index("expected")
    assert [row[at + 1] for row in rows] == [layer["bound"] for layer in found["paths"]["clean"]["expected"]["layers"]]


def test_what_is_unverified_is_unknown(built: BuildResult) -> None:
    graph = built.paths["clean"]
    target = resolve_target("jetson-orin")
    throughput = {key: pair for key, pair in target.profile.throughput.items() if key != "fp32"}
    bare = replace(target, profile=replace(target.profile, throughput=throughput))
    found = expected_latency(graph.cost, target=bare, precision="fp32")
    assert isinstance(found, NoEstimate)
    assert found.as_json()["latency_ms"] is None
    assert list(expected_lines({"clean": found, "robust": found})) == [
        "expected latency unknown: the peak throughput of NVIDIA Jetson AGX Orin 64GB, highest clocks, in fp32 is "
        "unverified"
    ]
    assert build_rows(graph, found)[0][-2:] == ["", ""]


@pytest.mark.parametrize("name", ["x86-cpu", "arm-cpu"])
def test_of_a_processor_nothing_is_expected(built: BuildResult, name: str) -> None:
    found = expected_latency(built.paths["clean"].cost, target=resolve_target(name), precision="fp32")
    assert found.as_json() == {
        "latency_ms": None,
        "measured": False,
        "unknown": "a processor's peaks say little about it; smart-bench measures the latency on it",
    }


def test_a_user_reads_what_to_expect(checkpoint_file: Path, tmp_path: Path) -> None:
    done = smart_export(checkpoint_file, "--target", "rtx-4090", "--baseline", "none", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "clean: at least " in done.stdout
    assert " ms (roofline estimate, not measured), " in done.stdout
    assert "expected by peaks of NVIDIA GeForce RTX 4090, highest clocks: fp32 at " in done.stdout
    assert "bound by" in done.stdout
