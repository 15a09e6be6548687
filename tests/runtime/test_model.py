from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smart_runtime.model
from runtime.bundles import CLASS_NAMES, Array, as_float, expected_scores, ours, random_images, write_bundle
from smart_devices.errors import MissingExtraError
from smart_runtime import Bundle, ClosedError, EngineError, InputError, PathError, PathStats, SmartModel
from smart_runtime.engines import Batch, Scores, create_engine

IMAGES = random_images(4)
FLOATS = as_float(IMAGES)


@pytest.fixture
def model(bundle: Path) -> Iterator[SmartModel]:
    with SmartModel.load(bundle, threads=1) as loaded:
        yield loaded


def assert_scores(scores: Scores, path: str, images: Array = FLOATS) -> None:
    np.testing.assert_allclose(scores, expected_scores(path, images), rtol=0, atol=1e-6)


def test_the_paths_differ() -> None:
    assert np.abs(expected_scores("clean", FLOATS) - expected_scores("robust", FLOATS)).max() > 0.1


def test_the_readme_example(bundle: Path) -> None:
    with SmartModel.load(bundle) as model:
        assert_scores(model(IMAGES), "clean")
        model.path = "robust"
        result = model.run(IMAGES)
    assert result.path == "robust"
    assert result.latency_ms > 0
    assert_scores(result.scores, "robust")


def test_uint8_and_float32_give_the_same_scores(model: SmartModel) -> None:
    assert np.array_equal(model(IMAGES), model(FLOATS))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_batch_size(model: SmartModel, count: int) -> None:
    floats = as_float(random_images(count, seed=count))
    scores = model(floats)
    assert scores.shape == (count, 5)
    assert_scores(scores, "clean", floats)


def test_what_a_model_says_about_itself(model: SmartModel) -> None:
    assert model.paths == ("clean", "robust")
    assert model.path == "clean"
    assert list(model.class_names) == CLASS_NAMES
    assert model.manifest.target.name == "jetson-orin"  # a bundle for a Jetson runs on any CPU
    assert model.engine_name == "onnxruntime-cpu"
    assert len(model.bundle.digest) == 64


def test_first_path(bundle: Path, tmp_path: Path) -> None:
    with SmartModel.load(bundle, path="robust") as model:
        assert model.path == "robust"

    def robust_first(document: dict[str, Any]) -> None:
        ours(document)["default_path"] = "robust"

    with SmartModel.load(write_bundle(tmp_path / "b", change=robust_first, baseline=False)) as model:
        assert model.run(IMAGES).path == "robust"


@pytest.mark.parametrize("path", ["fast", "", "Clean", "dense"])
def test_an_unknown_path_changes_nothing(bundle: Path, model: SmartModel, path: str) -> None:
    with pytest.raises(PathError, match=f"expected one of the paths 'clean', 'robust', got '{path}'"):
        SmartModel.load(bundle, path=path)
    with pytest.raises(PathError, match=f"expected one of the paths 'clean', 'robust', got '{path}'"):
        model.path = path
    assert model.path == "clean"
    assert_scores(model(IMAGES), "clean")


@pytest.mark.parametrize("path", [["clean"], None, 0, np.array(["clean"])], ids=["list", "None", "number", "array"])
def test_a_path_that_is_no_text_changes_nothing(model: SmartModel, path: Any) -> None:
    with pytest.raises(PathError, match="expected one of the paths 'clean', 'robust', got "):
        model.switch(path)
    assert model.path == "clean"


def test_scores_belong_to_the_caller(model: SmartModel) -> None:
    first = model(IMAGES)
    kept = first.copy()
    model.path = "robust"
    model(IMAGES)
    assert np.array_equal(first, kept)
    first[:] = 0


def test_stats(model: SmartModel) -> None:
    assert model.stats.paths["clean"] == PathStats()
    assert model.stats.paths["clean"].mean_latency_ms is None
    latencies = [model.run(IMAGES).latency_ms for _ in range(3)]
    before = model.stats
    with pytest.raises(InputError):
        model(IMAGES[0])
    model.switch("clean", reason="nothing to do")
    model.switch("robust", reason="strange pictures")
    model(FLOATS[:1])
    stats = model.stats
    clean, robust = stats.paths["clean"], stats.paths["robust"]
    assert (clean.calls, clean.images, clean.errors) == (3, 12, 1)
    assert (robust.calls, robust.images, robust.errors) == (1, 1, 0)
    assert clean.total_latency_ms == pytest.approx(sum(latencies))
    assert clean.mean_latency_ms == pytest.approx(sum(latencies) / 3)
    assert (stats.switches, stats.last_reason) == (1, "strange pictures")
    assert (before.paths["clean"].errors, before.switches, before.last_reason) == (0, 0, "")  # a snapshot stays


def test_closed(bundle: Path) -> None:
    model = SmartModel.load(bundle)
    model(IMAGES)
    model.close()
    model.close()
    for use in (
        lambda: model(IMAGES),
        lambda: model.run(IMAGES),
        lambda: model.path,
        lambda: model.switch("robust"),
        lambda: model.switch("clean"),
    ):
        with pytest.raises(ClosedError, match="expected an open model, got a closed one; load the bundle again"):
            use()
    assert model.paths == ("clean", "robust")
    assert model.stats.paths["clean"].calls == 1


def test_a_failed_load_closes_what_it_opened(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def second_fails(*args: Any, **kwargs: Any) -> Any:
        if opened:
            raise EngineError("no second engine")
        opened.append(create_engine(*args, **kwargs))
        return opened[0]

    monkeypatch.setattr(smart_runtime.model, "create_engine", second_fails)
    with pytest.raises(EngineError, match="no second engine"):
        SmartModel.load(bundle)
    with pytest.raises(ClosedError):
        opened[0].run(FLOATS)


def test_both_paths_have_run_before_load_returns(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, ...]] = []

    class Recording:
        def run(self, batch: Batch) -> Scores:
            runs.append(batch.shape)
            return np.zeros((len(batch), 5), np.float32)

        def close(self) -> None: ...

    monkeypatch.setattr(smart_runtime.model, "create_engine", lambda *_, **__: Recording())
    SmartModel.load(bundle).close()
    assert runs == [(1, 3, 6, 4)] * 2


class Gate:
    """An engine that waits inside a run until it is let go, then gives its own constant."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def run(self, batch: Batch) -> Scores:
        self.entered.set()
        assert self.let_go.wait(timeout=30)
        return np.full((len(batch), 5), self.value, np.float32)

    def close(self) -> None:
        raise AssertionError("a call may still be in flight")


@pytest.mark.parametrize("event", ["switch", "close"])
def test_a_call_in_flight_finishes_on_its_path(bundle: Path, event: str) -> None:
    gates = {"clean": Gate(1), "robust": Gate(2)}
    model = SmartModel(Bundle.open(bundle), engines=gates, engine_name="gate", path="clean")
    results = []
    caller = threading.Thread(target=lambda: results.append(model.run(FLOATS)))
    caller.start()
    assert gates["clean"].entered.wait(timeout=30)
    if event == "switch":
        model.path = "robust"  # returns at once, though a call is running
        gates["robust"].let_go.set()
        later = model.run(FLOATS)
        assert (later.path, later.scores[0, 0]) == ("robust", 2)
    else:
        model.close()
    gates["clean"].let_go.set()
    caller.join(timeout=30)
    (result,) = results
    assert (result.path, result.scores[0, 0]) == ("clean", 1)


def test_every_result_is_made_by_the_path_it_names(model: SmartModel) -> None:
    batches = [as_float(random_images(count, seed=count)) for count in (1, 2, 3)]
    known = {}
    for path in model.paths:
        model.path = path
        known[path] = [model(batch) for batch in batches]
    calls, callers = 300, 4
    start = threading.Barrier(callers + 1)
    running = [True] * callers
    wrong: list[str] = []
    failed: list[BaseException] = []

    def call(number: int) -> None:
        try:
            start.wait()
            for i in range(calls):
                which = (number + i) % len(batches)
                result = model.run(batches[which])
                if not np.array_equal(result.scores, known[result.path][which]):
                    wrong.append(f"call {i} of thread {number} says {result.path}")
        except BaseException as error:  # a thread's exception would be lost
            failed.append(error)
        finally:
            running[number] = False

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    start.wait()
    before = model.stats
    switches = 0
    while any(running):
        model.switch("robust" if switches % 2 else "clean")
        switches += 1
    for thread in threads:
        thread.join()
    assert not failed
    assert not wrong
    stats = model.stats
    assert sum(path.calls for path in stats.paths.values()) == 2 * len(batches) + callers * calls
    assert sum(path.errors for path in stats.paths.values()) == 0
    assert stats.switches - before.switches > 0


def test_loading_leaves_no_telemetry_files(bundle: Path, tmp_path: Path) -> None:
    code = "import sys; from smart_runtime import SmartModel; SmartModel.load(sys.argv[1]).close()"
    kept = {
        name: value for name, value in os.environ.items() if name not in {"XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"}
    }
    command = [sys.executable, "-c", code, str(bundle)]
    done = subprocess.run(command, env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [str(file) for file in tmp_path.rglob("*") if file.is_file()] == []


def test_who_allows_telemetry_keeps_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # the library itself stays out, so that nothing is sent
    with pytest.raises(MissingExtraError):
        SmartModel.load(bundle)
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
