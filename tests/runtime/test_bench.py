from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundles import write_bundle
from smart_common.errors import MissingExtraError, OutputError
from smart_common.figures import check_plot
from smart_runtime import Bundle
from smart_runtime.bench.cli import main
from smart_runtime.bench.compare import compare, steps
from smart_runtime.bench.contenders import Source
from smart_runtime.bench.measure import (
    DISCARDED_CALLS,
    Block,
    agrees,
    calls_per_block,
    interleave,
    random_batch,
    speed_up,
    summarise,
    time_block,
)
from smart_runtime.bench.plot import write_plot
from smart_runtime.bench.report import Report
from smart_runtime.bench.switching import cold_load_ms, measure_switch
from smart_runtime.bench.worker import SoloRequest, solo_median_ms
from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.engines import Batch, Scores
from smart_runtime.errors import BundleError, EngineError

ROW_KEYS = {
    "name",
    "median_ms",
    "p90_ms",
    "p99_ms",
    "solo_median_ms",
    "macs",
    "parameters",
    "bytes",
    "speedup",
    "speedup_low",
    "speedup_high",
    "mac_ratio",
    "bundle",
    "precision",
    "block_medians_ms",
}
LATENCIES = st.lists(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), min_size=1, max_size=8)


def blocks_of(latencies: list[list[float]]) -> list[Block]:
    return [np.array(block) for block in latencies]


@given(LATENCIES)
def test_summary_is_that_of_all_calls(latencies: list[list[float]]) -> None:
    calls = sorted(value for block in latencies for value in block)
    summary = summarise(blocks_of(latencies))
    for share, got in ((0.5, summary.median_ms), (0.9, summary.p90_ms), (0.99, summary.p99_ms)):
        at = share * (len(calls) - 1)  # linear interpolation between the neighbours, by hand
        low = calls[int(at)]
        high = calls[min(int(at) + 1, len(calls) - 1)]
        assert got == pytest.approx(low + (high - low) * (at - int(at)))


@given(LATENCIES, st.floats(0.25, 4))
def test_a_path_that_is_always_a_factor_faster(latencies: list[list[float]], factor: float) -> None:
    """Paired rounds: however the machine drifts, a constant factor has an interval of no width."""
    slow = blocks_of(latencies)
    ratio = speed_up(slow, [block / factor for block in slow], rng=np.random.default_rng(0), resamples=20)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([factor] * 3)


def test_the_interval_is_that_of_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(1)
    slow, fast = [rng.lognormal(1, 0.2, 5) for _ in range(12)], [rng.lognormal(0, 0.2, 7) for _ in range(12)]
    ratio = speed_up(slow, fast, rng=np.random.default_rng(7), resamples=200)
    draws = np.random.default_rng(7).integers(0, 12, (200, 12))
    oracle = sorted(
        float(np.median([x for i in draw for x in slow[i]]) / np.median([x for i in draw for x in fast[i]]))
        for draw in draws
    )
    assert ratio.value == pytest.approx(np.median(np.ravel(slow)) / np.median(np.ravel(fast)))
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.percentile(oracle, [2.5, 97.5])))
    assert ratio.low < ratio.value < ratio.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(100):
        drift = rng.uniform(0.8, 1.25, 30)
        slow = [2 * d * rng.lognormal(0, 0.1, 5) for d in drift]
        fast = [d * rng.lognormal(0, 0.1, 5) for d in drift]
        ratio = speed_up(slow, fast, rng=rng, resamples=100)
        hits += ratio.low <= 2 <= ratio.high
    assert hits >= 85  # of 100 at 95%: below 85 has a chance of 1 in 10,000; seeded anyway


@pytest.mark.parametrize(
    ("solo", "median", "same"), [(1.0, 1.0, True), (1.15, 1.0, True), (1.16, 1.0, False), (0.84, 1.0, False)]
)
def test_agreement(solo: float, median: float, same: bool) -> None:
    assert agrees(solo, median) is same


class Counting:
    """An engine that only notes its calls."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, batch: Batch) -> Scores:
        self.log.append(self.name)
        return batch


def test_blocks_are_interleaved_in_changing_order() -> None:
    log: list[str] = []
    engines = [Counting(name, log) for name in "abc"]
    rounds: list[str] = []
    timed = interleave(
        engines,
        np.zeros((1, 1), np.float32),
        calls=[8, 8, 10],
        blocks=12,
        rng=np.random.default_rng(0),
        advance=rounds.append,
    )
    assert len(rounds) == 12
    assert [{len(block) for block in blocks} for blocks in timed] == [{5}, {5}, {7}]
    orders = ["".join(dict.fromkeys(log[i : i + 26])) for i in range(0, len(log), 26)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(set(orders)) > 1


def test_a_block_is_long_enough() -> None:
    engine = Counting("a", [])
    assert calls_per_block(engine, np.zeros((1, 1), np.float32)) == 203  # far below 50 us a call: the most
    assert len(time_block(engine, np.zeros((1, 1), np.float32), calls=8)) == 8 - DISCARDED_CALLS


def test_the_input_is_valid() -> None:
    batch = random_batch((3, 6, 4), size=2, rng=np.random.default_rng(0))
    assert batch.shape == (2, 3, 6, 4)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert 0 <= batch.min() < batch.max() < 1


@pytest.fixture(scope="module")
def report(bundle: Path) -> Report:
    opened = {"tiny/": Bundle.open(bundle)}
    done: list[str] = []
    result = compare(opened, blocks=3, advance=done.append)
    assert len(done) == steps(opened, blocks=3)
    return result


def test_the_json_is_what_the_issue_says(report: Report) -> None:
    document: dict[str, Any] = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert document["engine"] == "onnxruntime-cpu"
    assert (document["batch"], document["threads"]) == (1, 1)
    assert [row["name"] for row in document["rows"]] == ["dense", "clean", "robust"]
    assert document["bundles"] == [
        {
            "bundle": "tiny/",
            "digest": document["bundle_digest"],
            "signed_by": None,
            "target": "cpu",
            "profile": "x86-cpu",
            "precision": "fp32",
            "notes": [],
        }
    ]
    assert document["baseline"] is None
    assert document["reference"] == {"bundle": "tiny/", "name": "dense"}
    for row in document["rows"]:
        assert row.keys() >= ROW_KEYS
        assert (row["bundle"], row["precision"]) == ("tiny/", "fp32")
        assert len(row["block_medians_ms"]) == row["blocks"] == 3
        assert all(median > 0 for median in row["block_medians_ms"])
        assert 0 < row["median_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["solo_median_ms"] > 0
        assert row["speedup_low"] <= row["speedup_high"]
        assert row["calls"] >= 15
    dense, clean, _ = document["rows"]
    assert (dense["speedup"], dense["mac_ratio"]) == (1, 1)
    assert clean["speedup"] == pytest.approx(dense["median_ms"] / clean["median_ms"])
    assert clean["mac_ratio"] == dense["macs"] / clean["macs"]
    switch = document["switch"]
    assert 0 < switch["median_us"] <= switch["p99_us"]
    assert switch["first_result_ms"] > 0
    assert switch["cold_load_ms"] > 0
    environment = document["environment"]
    assert environment["cores"] >= environment["usable_cores"] >= 1
    assert len(environment["load_average"]) == 3
    assert {"numpy", "onnxruntime"} <= environment["versions"].keys()
    assert "governor" in environment


def test_without_a_baseline_there_is_no_speed_up(tmp_path: Path) -> None:
    file = tmp_path / "bench.svg"
    bundle = write_bundle(tmp_path / "b", baseline=False)
    result = CliRunner().invoke(main, [str(bundle), "--blocks", "2", "--json", "--plot", str(file)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["name"] for row in document["rows"]] == ["clean", "robust"]
    for row in document["rows"]:
        assert [row[key] for key in ("speedup", "speedup_low", "speedup_high", "mac_ratio")] == [None] * 4
    assert "Speed-up" not in file.read_text(encoding="utf-8")


def test_the_table_from_a_real_process(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.png"
    command = [sys.executable, "-m", "smart_runtime.bench.cli", str(bundle), "--blocks", "2", "--plot", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in (
        "dense",
        "clean",
        "robust",
        "speed-up (95% interval)",
        "MAC ratio",
        "switch:",
        "cold load",
        "within this run",
        "governor",
        "load ",
    ):
        assert words in done.stdout
    assert "bundle" not in done.stdout  # a column only where there are several
    assert done.stderr.split() == ["plot:", str(file)]
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["plot.png", "plot.svg", "plot.pdf"])
def test_a_plot_replaces_the_old_one_whole(report: Report, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"old")
    write_plot(report, file)
    assert len(file.read_bytes()) > 5000
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_failed_plot_leaves_the_old_one(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    file = tmp_path / "plot.png"
    file.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_plot(report, file)
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plot.doc", "ending in .png"),
        ("nowhere/plot.png", "no directory for the plot at "),
        ("folder.png", "cannot be written over the directory"),
        ("locked/plot.png", "may not be written into the directory"),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused_first(
    bundle: Path, tmp_path: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("folder.png", "locked"):
        (tmp_path / folder).mkdir()
    # Not by chmod: root, as which containers run tests, may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path).name != "locked")
    with pytest.raises(OutputError, match=said):
        check_plot(tmp_path / name)
    result = CliRunner().invoke(main, [str(bundle), "--plot", str(tmp_path / name)])
    assert result.exit_code == 1
    assert said in result.output


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_plot_that_fails_loses_no_figure(
    bundle: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smart_runtime.bench.compare.compare", lambda *_, **__: report)
    monkeypatch.setattr("smart_runtime.bench.plot.write_plot", full)
    result = CliRunner().invoke(main, [str(bundle), "--plot", str(tmp_path / "plot.png"), *options])
    assert result.exit_code == 1
    assert "error: the system refused: No space left on device\n" in result.output
    assert "block_medians_ms" in result.stdout if options else "speed-up (95% interval)" in result.stdout


def test_missing_matplotlib_names_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'smart-edge\[plot\]'"):
        check_plot(tmp_path / "plot.png")


def test_a_changed_byte_is_refused(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    (own_bundle / "dense/weights.bin").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"dense/weights\.bin"):
        compare({"own": opened}, blocks=2)


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    source = Source(place=str(tmp_path), graph="clean", digest="0", shape=(3, 6, 4))
    request = SoloRequest(source=source, engine="auto", batch=1, threads=1, blocks=2, calls=8, seed=0)
    with pytest.raises(EngineError, match=r"^'clean' runs here, but not in a process of its own .*is no bundle"):
        solo_median_ms(request)


def test_an_engine_without_a_name_is_not_auto(bundle: Path) -> None:
    refused = CliRunner().invoke(main, [str(bundle), "--engine", "", "--blocks", "2"])
    assert refused.exit_code == 1
    assert "unknown engine ''; there are auto, " in refused.stderr


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        ({"clean"}, "(!) alone, clean differs by"),
        ({"dense", "robust"}, "(!) alone, dense and robust differ by"),
        ({"dense", "clean", "robust"}, "(!) alone, dense, clean and robust differ by"),
    ],
    ids=["one", "two", "three"],
)
def test_graphs_that_differ_alone_are_listed(
    bundle: Path, report: Report, monkeypatch: pytest.MonkeyPatch, apart: set[str], said: str
) -> None:
    rows = tuple(replace(row, solo_median_ms=row.median_ms * (2 if row.name in apart else 1)) for row in report.rows)
    monkeypatch.setattr("smart_runtime.bench.compare.compare", lambda *_, **__: replace(report, rows=rows))
    result = CliRunner().invoke(main, [str(bundle)])
    assert result.exit_code == 0, result.output
    assert said in result.output


def test_command_line_manners() -> None:
    runner = CliRunner()
    assert "smart-bench bundle/ --batch 1 --threads 1 --plot bench.png" in runner.invoke(main, ["--help"]).output
    assert runner.invoke(main, ["--version"]).output.startswith("smart-bench, version ")
    nowhere = runner.invoke(main, ["nowhere"])
    assert nowhere.exit_code == 1
    assert nowhere.output.startswith("error: no bundle directory at 'nowhere'")
    assert runner.invoke(main, ["nowhere", "--blocks", "1"]).exit_code == 2
    assert "Missing argument 'BUNDLE'" in runner.invoke(main, []).output
    assert runner.invoke(main, []).exit_code == 2


def test_no_unchecked_bytes_are_timed(own_bundle: Path) -> None:
    bundle, batch = Bundle.open(own_bundle), np.zeros((1, 3, 6, 4), dtype=np.float32)
    arguments: dict[str, Any] = {"engine": "onnxruntime-cpu", "threads": 1}
    assert measure_switch(bundle, batch, **arguments) is not None
    weights = own_bundle / "robust/weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"'robust/weights\.bin' as it was exported"):
        cold_load_ms(bundle, batch, path="robust", **arguments)
    write_checksums(own_bundle)  # now it is another bundle, and a sound one
    with pytest.raises(BundleError, match=r"expected one bundle at .* all the while, got another"):
        measure_switch(bundle, batch, **arguments)
