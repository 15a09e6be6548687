from __future__ import annotations

import json
import os
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx.reference import ReferenceEvaluator

from runtime.bundles import ours, write_bundle
from smart_devices.roofline import (
    Calibration,
    CalibrationKey,
    NoEstimate,
    calibration_key,
    estimate,
    load_calibration,
    store_calibration,
)
from smart_runtime import Bundle
from smart_runtime.bench.calibrate import PROBES, Timing, calibrate, fitted, timings_of
from smart_runtime.bench.cli import main
from smart_runtime.bench.compare import compare
from smart_runtime.bench.expected import expected, why
from smart_runtime.bench.probes import Probe, ProbeEngine
from smart_runtime.errors import EngineError

KEY = CalibrationKey(cpu="Abacus 7", threads=1, engine="onnxruntime-cpu", engine_version="1.32.0")
NO_IMAGES: npt.NDArray[np.float32] = np.zeros((1, 1, 1, 1), dtype=np.float32)
TRUTH = Calibration(
    key=KEY,
    convolution_mac_s=8e-12,
    depthwise_mac_s=2e-11,
    convolution_byte_s=4e-11,
    again_byte_s=2e-11,
    linear_byte_s=3e-11,
    operator_s=3e-7,
    call_s=5e-6,
    channel_block=8,
    worst_error=0.0,
)


def seconds_under(calibration: Calibration, probe: Probe) -> float:
    """What a call of ``probe`` takes on a machine that keeps to ``calibration``."""
    work = probe.work
    kind = "Linear" if work.kind == "linear" else "Conv2d"
    record = {key: getattr(work, key) for key in ("name", "groups", "in_channels", "out_channels", "weights", "macs")}
    found = estimate([record | {"type": kind}] * probe.layers, roof=calibration, batch=probe.batch)
    assert found.as_json()["latency_ms"] is not None
    return float(found.as_json()["latency_ms"]) / 1e3


@pytest.mark.parametrize("block", [1, 8, 16])
def test_costs_are_found_again(block: int) -> None:
    truth = replace(TRUTH, channel_block=block)
    timings = [Timing(probe=probe, seconds=seconds_under(truth, probe)) for probe in PROBES]
    found = fitted(timings, key=KEY)
    assert found.channel_block == block
    assert astuple(found)[1:8] == pytest.approx(astuple(truth)[1:8], rel=1e-3)  # least squares over ten decades
    assert found.worst_error < 1e-6


def test_a_cost_that_there_is_not_is_none_and_never_negative() -> None:
    truth = replace(TRUTH, again_byte_s=0.0)
    rng = np.random.default_rng(0)
    timings = [Timing(probe=probe, seconds=seconds_under(truth, probe) * rng.uniform(0.9, 1.1)) for probe in PROBES]
    found = fitted(timings, key=KEY)
    assert all(value >= 0 for value in astuple(found)[1:8])
    assert found.convolution_mac_s == pytest.approx(truth.convolution_mac_s, rel=0.2)
    assert 0 < found.worst_error < 0.3


def test_times_that_make_no_sense_are_refused() -> None:
    timings = [
        Timing(probe=probe, seconds=1e-9 if probe.kernel == 3 and not probe.depthwise else 1.0) for probe in PROBES
    ]
    with pytest.raises(EngineError, match="expected convolutions to take time"):
        fitted(timings, key=KEY)


def test_the_shortest_call_counts() -> None:
    blocks = [[np.array([3.0, 2.0]), np.array([2.5, 40.0])]] * len(PROBES)
    assert [timing.seconds for timing in timings_of(blocks)] == [2e-3] * len(PROBES)


@pytest.mark.parametrize(
    "probe",
    [
        Probe(channels=5, side=4, kernel=3, layers=2, batch=3),
        Probe(channels=4, side=3, kernel=1, layers=3),
        Probe(channels=6, side=4, kernel=3, layers=2, depthwise=True),
        Probe(channels=8, side=1, kernel=0, layers=2, batch=2),
    ],
    ids=["3x3", "1x1", "depthwise", "linear"],
)
def test_a_probe_is_a_valid_graph_of_the_layers_that_it_says(probe: Probe) -> None:
    data = probe.graph(np.random.default_rng(0))
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    ops = [node.op_type for node in model.graph.node]
    layers = ops.count("Conv") + ops.count("Gemm")
    weights = [tensor for tensor in model.graph.initializer if tensor.name.startswith("w")]
    assert layers == len(weights) == probe.layers
    assert {int(np.prod(tensor.dims)) for tensor in weights} == {probe.work.weights}
    images = np.random.default_rng(1).random((probe.batch, probe.channels, probe.side, probe.side), dtype=np.float32)
    expected = ReferenceEvaluator(model).run(None, {"image": images})[0]  # type: ignore[index]  # a list, without options
    engine = ProbeEngine(probe, engine="onnxruntime-cpu", threads=1, rng=np.random.default_rng(0))
    engine._images = images
    got = engine.run(NO_IMAGES)
    engine.close()
    assert np.abs(got - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))  # float32 sums


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes of every kind, with less in them than tell anything."""
    probes = tuple(
        replace(probe, layers=1, channels=min(probe.channels, 64), batch=min(2, probe.batch)) for probe in PROBES
    )
    monkeypatch.setattr("smart_runtime.bench.calibrate.PROBES", probes)
    monkeypatch.setattr("smart_runtime.bench.cli.ROUNDS", 2)
    monkeypatch.setattr("smart_runtime.bench.cli.measure_processor", partial(calibrate, rounds=2))


@pytest.mark.usefixtures("little")
def test_a_processor_is_measured_once_and_remembered(tmp_path: Path, bundle: Path) -> None:
    made = CliRunner().invoke(main, ["--calibrate", "--cache-dir", str(tmp_path), "--json"])
    assert made.exit_code == 0, made.output
    document = json.loads(made.stdout)
    key = calibration_key(threads=1)
    assert document["key"] == asdict(key)
    kept = load_calibration(key, cache_dir=tmp_path)
    assert kept is not None
    assert {"file": document["file"], **asdict(kept)} == document
    assert kept.convolution_mac_s > 0
    # A bundle that does not say what its layers cost.
    found = expected(Bundle.open(bundle), "clean", engine="onnxruntime-cpu", batch=1, threads=1, cache_dir=tmp_path)
    assert isinstance(found, NoEstimate)
    assert why([found, found]).startswith("unknown: the bundle does not say what layer 1 costs")


@pytest.mark.usefixtures("little")
def test_a_calibration_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    made = CliRunner().invoke(main, ["--calibrate", "--threads", "2", "--cache-dir", str(tmp_path)])
    assert made.exit_code == 0, made.output
    assert "threads 2, fp32: " in made.stdout
    assert "GMAC/s as calibrated" in made.stdout
    assert f"kept in {tmp_path}" in made.stdout
    assert load_calibration(calibration_key(threads=2), cache_dir=tmp_path) is not None
    assert load_calibration(calibration_key(threads=1), cache_dir=tmp_path) is None


def test_measured_beside_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        {
            "name": "conv",
            "type": "Conv2d",
            "groups": 1,
            "in_channels": 3,
            "out_channels": 4,
            "weights": 12,
            "macs": 288,
        },
        {"name": "head", "type": "Linear", "groups": 1, "in_channels": 4, "out_channels": 5, "weights": 20, "macs": 20},
    ]
    folder = write_bundle(tmp_path / "b", change=lambda document: told(document, layers))
    truth = replace(TRUTH, key=calibration_key(threads=1))
    store_calibration(truth, cache_dir=tmp_path / "cache")
    opened = Bundle.open(folder)
    report = compare({"b": opened}, blocks=2, batch=2, cache_dir=tmp_path / "cache")
    found = estimate(layers, roof=truth, batch=2)
    assert [row["expected_ms"] for row in report.as_json()["rows"]] == [found.as_json()["latency_ms"]] * 3
    assert report.as_json()["expected"] == truth.assumes
    monkeypatch.setattr("smart_runtime.bench.cli.compare", lambda *_, **__: report)
    table = CliRunner().invoke(main, [str(folder)]).stdout
    assert "expected" in table.partition("latency of")[0]
    assert f"expected, not measured: {truth.assumes}" in table


def told(document: dict[str, Any], layers: list[dict[str, Any]]) -> None:
    for graph in (*ours(document)["paths"].values(), ours(document)["baseline"]):
        graph["layers"] = layers


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["b", "--calibrate"], "takes no BUNDLE"),
        (["--calibrate", "--batch", "8"], "takes no --batch"),
        (["--calibrate", "--plot", "p.png"], "takes no --plot"),
        (["--compare", "a", "b", "--calibrate"], "takes no --calibrate"),
        (["--compare", "a", "b", "--cache-dir", "c"], "takes no --cache-dir"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_more_threads_than_cores_are_refused_at_once(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--calibrate", "--threads", "99999", "--cache-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith(f"error: expected 1 to {len(os.sched_getaffinity(0))} threads")
    assert not list(tmp_path.iterdir())


def test_without_a_home_directory_a_place_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smart_runtime.bench.cli.default_cache_dir", lambda: None)
    result = CliRunner().invoke(main, ["--calibrate"])
    assert result.exit_code == 1
    assert result.output.startswith("error: expected a place to keep the calibration, got no home directory; name one")
