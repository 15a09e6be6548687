"""``smart-bench`` with an engine on the GPU: wall time as on a CPU, and beside it what the GPU says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cuda.stand_in import StandInDriver
from runtime.bundles import write_bundle
from smart_runtime.bench.cli import main
from trt.machine import gpu_machine


def test_every_graph_has_its_times_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    monkeypatch.setattr(
        "smart_runtime.bench.compare.solo_median_ms", lambda *_, **__: 1.0
    )  # a process without stand-ins
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path / "cache"):
        arguments = [str(bundle), "--engine", "tensorrt", "--blocks", "2", "--json"]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    answer = json.loads(done.stdout)
    rows = {row["name"]: row for row in answer["rows"]}
    assert set(rows) == {"dense", "clean", "robust"}
    for row in rows.values():
        assert row["gpu_ms"] is not None
        assert row["copies_ms"] is not None
    assert answer["environment"]["library"] == "TensorRT 10.3.0"
