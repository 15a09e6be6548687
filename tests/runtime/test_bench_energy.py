from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from devices.trees import ORIN_NANO, ORIN_NANO_W, plant
from smart_devices import engine_info
from smart_devices.errors import SensorError
from smart_devices.power import NoPower, PowerSampler, PowerSource, find_power
from smart_devices.power.meters import PowerMeter
from smart_runtime import Bundle
from smart_runtime.bench.cli import main
from smart_runtime.bench.compare import compare, steps
from smart_runtime.bench.contenders import contenders
from smart_runtime.bench.energy import Energy, Sensing, measure_energy
from smart_runtime.bench.measure import random_batch
from smart_runtime.bench.report import Report

MODE = {
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
}


def sensor(watts: Iterator[float]) -> PowerSource:
    """A sensor that gives ``watts`` one after the other, twice a phase: at its beginning and end."""

    def read() -> float:
        value = next(watts)
        if value < 0:
            raise SensorError("it broke")
        return value

    return PowerSource(
        name="ina3221", measures="a test", period_s=3600.0, settle_s=0.0, new_meter=lambda: PowerMeter(read)
    )


def energies(bundle: Path, watts: list[float], *, batch: int = 1) -> tuple[list[Energy], Sensing]:
    """What the bundle's three graphs take by such a sensor, read twice while idle and twice for each graph."""
    graphs = contenders({"b": Bundle.open(bundle)}, baseline=None)
    images = random_batch(graphs[0].source.shape, size=batch, rng=np.random.default_rng(0))
    return measure_energy(graphs, images, source=sensor(iter(watts)), engine="onnxruntime-cpu", threads=1, phase_s=0.0)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("board"), ORIN_NANO | MODE)


@pytest.fixture(scope="module")
def report(bundle: Path, board: Path) -> Report:
    """Measured on the board, whose over-current counter moved meanwhile."""
    power = find_power(root=board)
    assert isinstance(power, PowerSource)
    opened = {"b": Bundle.open(bundle)}
    counter, done = board / "sys/class/hwmon/hwmon3/oc3_event_cnt", []

    def advance(_: str) -> None:
        done.append(1)
        counter.write_text("9\n")

    at_once = replace(power, settle_s=0.0)  # what is recorded changes no more
    result = compare(opened, blocks=2, power=at_once, phase_s=0.0, root=board, advance=advance)
    assert len(done) == steps(opened, blocks=2, power=power)
    return result


def test_a_board_with_sensors(report: Report) -> None:
    document = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert document["environment"]["power_mode"] == "MAXN_SUPER"
    assert document["energy"] == {
        "source": "ina3221",
        "measures": "module input (VDD_IN)",
        "phase_s": 0.0,
        "idle_w": pytest.approx(ORIN_NANO_W),
        "unknown": None,
    }
    for row in document["rows"]:
        assert row["power_w"] == pytest.approx(ORIN_NANO_W)
        assert row["energy_mj"] > 0
        assert row["energy_above_idle_mj"] == pytest.approx(0, abs=1e-6 * row["energy_mj"])
    gpu, cpu = document["clocks"]
    assert (gpu["name"], gpu["current_mhz"], gpu["max_mhz"]) == ("17000000.gpu", [306.0, 306.0], 1020.0)
    assert (cpu["part"], cpu["governor"]) == ("cpu", "schedutil")
    assert document["throttled"] == ["instantaneous over-current"]


def test_the_table_of_a_board(bundle: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smart_runtime.bench.compare.compare", lambda *_, **__: report)
    out = CliRunner().invoke(main, [str(bundle)]).stdout
    assert "energy an image" in out
    assert f"{ORIN_NANO_W:.3g} W" in out
    assert f"energy: module input (VDD_IN) by ina3221, 0 s a graph; idle {ORIN_NANO_W:.3g} W\n" in out
    assert (
        "power mode MAXN_SUPER; clocks after the last block: gpu 306 MHz (306 to 1020); cpu 730 to 1728 MHz "
        "(730 to 1728); held back by instantaneous over-current\n"
    ) in out


def test_a_machine_that_tells_nothing_says_so_in_two_lines(
    bundle: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tuple(replace(row, power_w=None, energy_mj=None, energy_above_idle_mj=None) for row in report.rows)
    silent = replace(
        report,
        rows=rows,
        energy=Sensing(unknown="no sensor"),
        clocks=(),
        throttled=(),
        environment=replace(report.environment, power_mode=None),
    )
    monkeypatch.setattr("smart_runtime.bench.compare.compare", lambda *_, **__: silent)
    out = CliRunner().invoke(main, [str(bundle)]).stdout
    assert "energy an image" not in out
    assert "energy unknown: no sensor\n" in out
    assert "power mode unknown; clocks after the last block: unknown, the system does not tell\n" in out


def test_energy_is_of_one_image_and_above_idle(bundle: Path) -> None:
    rows, sensing = energies(bundle, [4.0, 4.0, *([10.0, 10.0] * 3)], batch=4)
    assert sensing.idle_w == pytest.approx(4.0)
    for row in rows:
        assert row.power_w == pytest.approx(10.0)
        assert row.energy_mj is not None
        assert row.energy_above_idle_mj == pytest.approx(0.6 * row.energy_mj)


def test_energy_is_power_times_time_over_images(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    """By a clock that moves a second whenever it is looked at: a phase is 1 s, and of one call."""
    monkeypatch.setattr("smart_runtime.bench.energy.PowerSampler", partial(PowerSampler, clock=count().__next__))
    rows, _ = energies(bundle, [4.0, 4.0, *([10.0, 30.0] * 3)], batch=4)
    assert [row.energy_mj for row in rows] == [pytest.approx(1000 * 20.0 / 4)] * 3
    assert [row.energy_above_idle_mj for row in rows] == [pytest.approx(1000 * 16.0 / 4)] * 3


def test_a_sensor_that_breaks_in_the_middle_leaves_the_rest(bundle: Path) -> None:
    rows, sensing = energies(bundle, [4.0, 4.0, 10.0, 10.0, 10.0, -1.0, 10.0, 10.0])
    assert [row.power_w is None for row in rows] == [False, True, False]
    assert sensing.unknown == "it broke"


def test_without_idle_power_the_total_is_there(bundle: Path) -> None:
    rows, sensing = energies(bundle, [-1.0, *([10.0, 10.0] * 3)])
    assert sensing.idle_w is None
    assert all(row.energy_mj is not None and row.energy_above_idle_mj is None for row in rows)


def test_without_a_sensor_nothing_is_run(bundle: Path) -> None:
    graphs = contenders({"b": Bundle.open(bundle)}, baseline=None)
    images = np.zeros((1, 1), dtype=np.float32)  # nothing takes these
    rows, sensing = measure_energy(graphs, images, source=NoPower(reason="why"), engine="onnxruntime-cpu", threads=1)
    assert sensing == Sensing(unknown="why")
    assert [row.power_w for row in rows] == [None] * 3


@pytest.mark.parametrize(("engine", "part"), [("onnxruntime-cpu", "cpu"), ("tensorrt", "gpu")])
def test_what_an_engine_runs_on(engine: str, part: str) -> None:
    assert engine_info(engine).part == part
