from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smart_runtime.serving
from runtime.bundles import CLASS_NAMES, Array, as_float, expected_scores, ours, random_images, write_bundle
from runtime.each_engine import EngineUnderTest, cpu_only
from runtime.fakes import FakeEngine
from smart_common.errors import MissingExtraError
from smart_runtime import ClosedError, EngineError, InputError, PathError, PathStats, SmartModel
from smart_runtime.engines import Batch, Scores, create_engine

pytestmark = pytest.mark.usefixtures("engine")

IMAGES = random_images(4)
FLOATS = as_float(IMAGES)


@pytest.fixture
def model(bundle: Path) -> Iterator[SmartModel]:
    with SmartModel.load(bundle, threads=1) as loaded:
        yield loaded


def assert_scores(scores: Scores, path: str, images: Array = FLOATS) -> None:
    np.testing.assert_allclose(scores, expected_scores(path, images), rtol=0, atol=1e-6)


@cpu_only("no engine")
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


def test_what_a_model_says_about_itself(model: SmartModel, engine: EngineUnderTest) -> None:
    assert model.paths == ("clean", "robust")
    assert model.path == "clean"
    assert list(model.class_names) == CLASS_NAMES
    assert model.engine_name == engine.name
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
    with pytest.raises(PathError, match=f"unknown path '{path}'; the bundle has 'clean', 'robust' "):
        SmartModel.load(bundle, path=path)
    with pytest.raises(PathError, match=f"unknown path '{path}'; the bundle has 'clean', 'robust' "):
        model.path = path
    assert model.path == "clean"
    assert_scores(model(IMAGES), "clean")


@pytest.mark.parametrize("path", [["clean"], None, 0, np.array(["clean"])], ids=["list", "None", "number", "array"])
def test_a_path_that_is_no_text_changes_nothing(model: SmartModel, path: Any) -> None:
    with pytest.raises(PathError, match=r"unknown path .*; the bundle has 'clean', 'robust' "):
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
        with pytest.raises(ClosedError, match="the model is closed; load the bundle again"):
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

    monkeypatch.setattr(smart_runtime.serving, "create_engine", second_fails)
    with pytest.raises(EngineError, match="no second engine"):
        SmartModel.load(bundle)
    with pytest.raises(ClosedError):
        opened[0].run(FLOATS)


@cpu_only("engines of its own")
def test_both_paths_have_run_before_load_returns(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, ...]] = []

    class Recording(FakeEngine):
        def run(self, batch: Batch) -> Scores:
            runs.append(batch.shape)
            return np.zeros((len(batch), 5), np.float32)

    monkeypatch.setattr(smart_runtime.serving, "create_engine", lambda *_, **__: Recording())
    SmartModel.load(bundle).close()
    assert runs == [(1, 3, 6, 4), (2, 3, 6, 4)] * 2


@cpu_only("of ONNX Runtime")
def test_loading_leaves_no_telemetry_files(bundle: Path, tmp_path: Path) -> None:
    code = "import sys; from smart_runtime import SmartModel; SmartModel.load(sys.argv[1]).close()"
    kept = {
        name: value for name, value in os.environ.items() if name not in {"XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"}
    }
    command = [sys.executable, "-c", code, str(bundle)]
    done = subprocess.run(command, env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [str(file) for file in tmp_path.rglob("*") if file.is_file()] == []


@cpu_only("of ONNX Runtime")
def test_who_allows_telemetry_keeps_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # the library itself stays out, so that nothing is sent
    with pytest.raises(MissingExtraError):
        SmartModel.load(bundle)
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
