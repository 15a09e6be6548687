from __future__ import annotations

from contextlib import ExitStack
from dataclasses import astuple, replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from smart_devices.roofline import Calibration, CalibrationKey, estimate
from smart_runtime.bench.calibrate import PROBES, Timing, fitted, open_probes, timings_of
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


def test_every_probe_runs() -> None:
    with ExitStack() as opened:
        for engine, probe in zip(
            open_probes(threads=1, rng=np.random.default_rng(0), opened=opened), PROBES, strict=True
        ):
            scores = engine.run(NO_IMAGES)
            assert scores.shape == (probe.batch, probe.channels)
            assert np.isfinite(scores).all()
            assert scores.any()
