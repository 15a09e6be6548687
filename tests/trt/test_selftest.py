"""``smart-run selftest``: on stand-ins all passes, what is broken is named, and without a GPU it is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cuda.stand_in import StandInDriver
from smart_runtime.cli import main
from smart_runtime.engines import Batch, EngineOptions, Scores
from smart_runtime.engines.onnxruntime import OnnxRuntimeEngine
from smart_runtime.engines.trt.program import Program
from smart_runtime.engines.trt.tensorrt_engine import TensorRtEngine
from smart_runtime.selfcheck import model_checks
from smart_runtime.selfcheck.failure import CheckFailed
from smart_runtime.selfcheck.model_checks import CHECKS, Subject
from trt.machine import gpu_machine

CPU = "onnxruntime-cpu"


@pytest.fixture(autouse=True)
def fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checks, "_CALLS", 5)
    monkeypatch.setattr(model_checks, "_RELOADS", 2)


def selftest(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["selftest", *map(str, arguments)], catch_exceptions=False)


def test_all_passes_on_stand_ins(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path):
        done = selftest(bundle, "--engine", "tensorrt", "--json")
    answer = json.loads(done.stdout)
    assert answer["passed"], [check for check in answer["checks"] if not check["passed"]]
    assert {check["part"] for check in answer["checks"]} == {"cuda", "tensorrt", "tensorrt-rtx"}
    assert set(CHECKS) <= {check["check"] for check in answer["checks"] if check["part"] == "tensorrt"}


def test_a_check_that_fails_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    run: Callable[..., Any] = Program.run
    monkeypatch.setattr(Program, "run", lambda self, lane, batch, **how: (run(self, lane, batch, **how)[0] + 1, None))
    with gpu_machine(monkeypatch, stand_in, "rtx-1.7", cache=tmp_path):
        done = selftest(bundle, "--engine", "tensorrt-rtx")
    assert done.exit_code == 1
    assert "tensorrt-rtx, scores of the reference engine: clean: the scores differ by" in done.stderr
    assert "times" in done.stdout


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("arguments", [[], ["--json"], ["--engine", "tensorrt"], ["--engine", "onnxruntime-cuda"]])
def test_without_a_driver_it_is_one_sentence(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, ["selftest", *arguments])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "libcuda.so.1" in done.stderr


def test_the_cpu_can_be_checked_too(bundle: Path) -> None:
    done = selftest(bundle, "--engine", CPU, "--json")
    assert {check["part"] for check in json.loads(done.stdout)["checks"]} == {CPU}
    assert done.exit_code == 0


def shifted(scores: Scores, batch: Batch) -> Scores:
    """Scores that are those of the image only where it is alone."""
    return scores if len(batch) == 1 else scores[::-1].copy()


def noisy(scores: Scores, batch: Batch) -> Scores:
    return scores + np.float32(np.random.default_rng().random())


BROKEN = {
    "scores of the reference engine": lambda scores, _: scores * np.float32(1.1),
    "batches": shifted,
    "threads and switches": noisy,
    "on demand": noisy,
    "reloads": noisy,
}


class Broken(OnnxRuntimeEngine):
    break_it: Callable[[Scores, Batch], Scores]

    def run(self, batch: Batch) -> Scores:
        return type(self).break_it(super().run(batch), batch)


@pytest.mark.parametrize("name", BROKEN)
def test_each_check_fails_where_its_promise_is_broken(monkeypatch: pytest.MonkeyPatch, bundle: Path, name: str) -> None:
    from smart_devices import EngineInfo, engine_rows  # noqa: PLC0415

    monkeypatch.setattr(Broken, "break_it", staticmethod(BROKEN[name]), raising=False)
    row = EngineInfo(name="broken", needs="", part="cpu", judge=f"{__name__}:judge", factory=f"{__name__}:Broken")
    monkeypatch.setattr(engine_rows, "ENGINES", (*engine_rows.ENGINES, row))
    monkeypatch.setattr("smart_runtime.serving.Loader._try", lambda *_: None)
    with pytest.raises(CheckFailed):
        CHECKS[name](Subject(bundle, "broken", EngineOptions()))


def test_the_check_of_images_on_the_gpu_fails_where_they_give_other_scores(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    run = TensorRtEngine.run_gpu_images
    monkeypatch.setattr(TensorRtEngine, "run_gpu_images", lambda self, images: run(self, images) * np.float32(1.1))
    with (
        gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path),
        pytest.raises(CheckFailed, match=r"on the GPU the scores differ by 0\."),
    ):
        CHECKS["images on the GPU"](Subject(bundle, "tensorrt", EngineOptions()))
    skipped = CHECKS["images on the GPU"](Subject(bundle, CPU, EngineOptions()))
    assert skipped == {"skipped": "onnxruntime-cpu takes images from the host's memory only"}


def judge(_: object) -> Any:
    from smart_devices import EngineStatus  # noqa: PLC0415

    return EngineStatus("broken", available=True)
