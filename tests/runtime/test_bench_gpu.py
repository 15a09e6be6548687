"""What a comparison says beside the latency when a GPU computes: an engine of the test's stands in for one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from runtime.fakes import ON_CARD
from smart_devices import engine_rows
from smart_devices.nvml import Gpu
from smart_runtime import Bundle
from smart_runtime.bench import measure
from smart_runtime.bench.cli import main
from smart_runtime.bench.compare import compare
from smart_runtime.bench.environment import read_environment
from smart_runtime.bench.measure import DISCARDED_CALLS, WARM_UP_MS, time_block
from smart_runtime.bench.report import Report
from smart_runtime.engines import Batch, Scores


class Card(Gpu):
    """A graphics card without a library to ask."""

    def __init__(self) -> None: ...

    name = "Abacus 9000"
    driver = "580.1"

    def sm_clock_mhz(self) -> int:
        return 1500

    def max_sm_clock_mhz(self) -> int:
        return 1980

    def clock_event_reasons(self) -> int:
        return 0x04


@pytest.fixture
def _on_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh process would not know the engine, and its blocks need no warming up."""
    monkeypatch.setattr(engine_rows, "ENGINES", (ON_CARD, *engine_rows.ENGINES))
    monkeypatch.setattr("smart_runtime.bench.compare.solo_median_ms", lambda _: 1.0)
    monkeypatch.setattr("smart_runtime.bench.compare.open_gpu", Card)
    monkeypatch.setattr("smart_runtime.bench.compare.WARM_UP_MS", {"cpu": 0.0, "gpu": 0.1})


@pytest.fixture
def report(bundle: Path, _on_card: None) -> Report:
    return compare({"tiny/": Bundle.open(bundle)}, blocks=2, engine="on-card")


def test_the_rows_have_the_medians_by_the_gpus_clock(report: Report) -> None:
    for row in report.as_json()["rows"]:
        assert (row["gpu_ms"], row["copies_ms"]) == (4.0, 8.0)  # of the first call and five that take twice as long
        assert row["median_ms"] < 4  # the wall clock's stays what is compared
        assert row["speedup"] == pytest.approx(report.rows[0].median_ms / row["median_ms"])


def test_the_environment_has_the_card_and_the_library(report: Report) -> None:
    document = json.loads(json.dumps(report.as_json()))
    environment = document["environment"]
    assert (environment["gpu"], environment["gpu_driver"]) == ("Abacus 9000", "580.1")
    assert (environment["library"], environment["lanes"]) == ("cards 1.2", 2)
    assert document["clocks"][0]["name"] == "Abacus 9000"
    assert document["clocks"][0]["current_mhz"] == [1500, 1500]
    assert document["throttled"] == ["power cap"]


@pytest.mark.usefixtures("_on_card")
def test_without_the_management_library_the_engine_names_the_card(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smart_runtime.bench.compare.open_gpu", lambda: "no nvidia-ml-py")
    report = compare({"tiny/": Bundle.open(bundle)}, blocks=2, engine="on-card")
    assert (report.environment.gpu, report.environment.gpu_driver) == ("Abacus 8000", None)


@pytest.mark.usefixtures("_on_card")
def test_the_table_has_two_columns_more(bundle: Path) -> None:
    said = CliRunner().invoke(main, [str(bundle), "--engine", "on-card", "--blocks", "2"], env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    words = " ".join(word for word in said.output.split() if word not in "┃│")
    assert "gpu us copies us speed-up" in words or "gpu ms copies ms speed-up" in words
    assert "on Abacus 9000 and " in words
    assert "gpu and copies: within the latency, by the GPU's own clock" in words
    plain = CliRunner().invoke(main, [str(bundle), "--engine", "onnxruntime-cpu", "--blocks", "2"])
    assert "copies" not in plain.output


def test_a_jetson_is_its_product(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    compatible = "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
    (tmp_path / "proc/device-tree/compatible").write_text(compatible)
    environment = read_environment(root=tmp_path)
    assert environment.gpu is not None
    assert "Orin Nano" in environment.gpu


class Clock:
    """A clock that stands still but for the engine's calls of 4 ms."""

    def __init__(self) -> None:
        self.now_ns = 10**9
        self.calls = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def run(self, batch: Batch) -> Scores:
        self.calls += 1
        self.now_ns += 4 * 10**6
        return batch


@pytest.mark.parametrize(("part", "before"), [("cpu", 0), ("gpu", 13)])
def test_a_block_on_a_gpu_warms_it_up(monkeypatch: pytest.MonkeyPatch, part: str, before: int) -> None:
    """13 calls of 4 ms are the first that take 50 ms."""
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    block = time_block(clock, np.zeros((1, 1), np.float32), calls=8, warm_up_ms=WARM_UP_MS[part])
    assert clock.calls == before + 8
    assert block.tolist() == [4.0] * (8 - DISCARDED_CALLS)
