from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click import Command
from click.testing import CliRunner
from PIL import Image

from runtime.bundles import CHANNELS, CLASSES, HEIGHT, WIDTH, as_float, expected_scores, graph_files, random_images
from runtime.fakes import FASTER
from smart_common.errors import MissingExtraError
from smart_devices import EngineStatus, engine_rows, engine_status
from smart_runtime import Bundle, SmartModel
from smart_runtime.bench.cli import main as bench_command
from smart_runtime.bench.compare import compare
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.cli import main as run_command
from smart_runtime.engines import AUTO, REFERENCE_ENGINE, EngineOptions, create_engine, open_engine, resolve_engine
from smart_runtime.errors import ClosedError, EngineError

INPUTS = InputSpec(name="image", channels=CHANNELS, height=HEIGHT, width=WIDTH)
OUTPUTS = OutputSpec(name="scores", classes=CLASSES)
IMAGES = as_float(random_images(3))


def graph(name: str = "clean") -> GraphBytes:
    model, weights = graph_files(name)
    return GraphBytes(model=model, weights=weights, weights_name="weights.bin")


@pytest.mark.parametrize("name", ["clean", "robust", "dense"])
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_scores_are_those_of_the_oracle(name: str, threads: int | None) -> None:
    options = EngineOptions(threads=threads)
    engine = create_engine("onnxruntime-cpu", graph(name), inputs=INPUTS, outputs=OUTPUTS, options=options)
    scores = engine.run(IMAGES)
    assert scores.dtype == np.float32
    # sums of at most 24 terms of size 1 or so, in float32
    np.testing.assert_allclose(scores, expected_scores(name, IMAGES), rtol=0, atol=1e-6)
    engine.close()


def test_scores_outlive_the_engine_and_later_runs() -> None:
    engine = create_engine(AUTO, graph(), inputs=INPUTS, outputs=OUTPUTS)
    first = engine.run(IMAGES)
    kept = first.copy()
    assert first.flags.writeable
    engine.run(np.zeros_like(IMAGES))
    engine.close()
    del engine
    assert np.array_equal(first, kept)


def test_auto_is_onnx_runtime_on_the_cpu() -> None:
    assert resolve_engine(AUTO) == "onnxruntime-cpu"
    assert resolve_engine(REFERENCE_ENGINE) == REFERENCE_ENGINE


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("abacus", "unknown engine 'abacus'; there are auto, .*, onnxruntime-cpu"),
        ("onnxruntime", r"unknown engine 'onnxruntime'; did you mean onnxruntime-cpu\?"),
        ("tensorrt-rtx-builder", "tensorrt-rtx-builder builds engines and runs none; choose among auto, "),
    ],
)
def test_an_engine_that_cannot_be_had(name: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        create_engine(name, graph(), inputs=INPUTS, outputs=OUTPUTS)


@pytest.mark.skipif(engine_status("onnxruntime-cuda").available, reason="needs a machine without CUDA")
def test_an_engine_by_name_never_falls_back() -> None:
    with pytest.raises(MissingExtraError, match=r"^this device cannot run onnxruntime-cuda: "):
        resolve_engine("onnxruntime-cuda")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": -1}, "0 or more, got -1"),
        ({"lanes": 0}, "1 to 16 lanes, got 0"),
        ({"level": 6}, "0 to 5, got 6"),
        ({"batch": (1, 8, 64)}, r"expected batch as BatchRange\(min, opt, max\), got \(1, 8, 64\)"),
        ({"cache_dir": 5}, "expected cache_dir as the path of a folder, got 5"),
        ({"workspace_bytes": 2**63}, "expected workspace_bytes of 1 to .*, got 9223372036854775808; leave it out"),
        ({"memory_limit_bytes": 0}, "expected memory_limit_bytes of 1 to .*, got 0; leave it out"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        EngineOptions(**options)


def test_an_engine_says_what_it_is() -> None:
    engine = create_engine(AUTO, graph(), inputs=INPUTS, outputs=OUTPUTS, options=EngineOptions(threads=1))
    library = f"onnxruntime {onnxruntime.__version__}"
    assert engine.describe() == {"engine": "onnxruntime-cpu", "library": library, "threads": 1}


@pytest.mark.parametrize("threads", [0, 99_999])
def test_threads_that_cores_cannot_run(threads: int) -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(EngineError, match=f"expected 1 to {cores} threads, .* got {threads}"):
        EngineOptions(threads=threads)


def test_closed_twice_then_run() -> None:
    engine = create_engine(AUTO, graph(), inputs=INPUTS, outputs=OUTPUTS)
    engine.close()
    engine.close()
    with pytest.raises(ClosedError, match="the engine is closed; load the model again"):
        engine.run(IMAGES)


def test_missing_library_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'smart-edge\[cpu\]'"):
        create_engine(AUTO, graph(), inputs=INPUTS, outputs=OUTPUTS)


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (replace(INPUTS, name="picture"), OUTPUTS, "input picture"),
        (replace(INPUTS, height=7), OUTPUTS, r"\(N, 3, 7, 4\), got image tensor\(float\) \(N, 3, 6, 4\)"),
        (INPUTS, replace(OUTPUTS, name="logits"), "output logits"),
        (INPUTS, replace(OUTPUTS, classes=10), r"\(N, 10\), got scores tensor\(float\) \(N, 5\)"),
    ],
    ids=["input name", "input shape", "output name", "classes"],
)
def test_a_graph_that_is_not_what_the_manifest_says(inputs: InputSpec, outputs: OutputSpec, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        create_engine(AUTO, graph(), inputs=inputs, outputs=outputs)


def test_a_graph_with_a_fixed_batch_size() -> None:
    model, weights = graph_files("clean", batch="1")
    fixed = GraphBytes(model=model, weights=weights, weights_name="weights.bin")
    with pytest.raises(EngineError, match="fixed batch size"):
        create_engine(AUTO, fixed, inputs=INPUTS, outputs=OUTPUTS)


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (replace(graph(), model=b"not a graph"), "expected a plain ONNX graph"),
        (replace(graph(), model=b""), "ONNX Runtime did not accept the graph"),
        (replace(graph(), model=graph().model[:-9]), "a file that ends too early"),
        (replace(graph(), weights=b"short"), "'w' of 48 bytes at 0 in 5 bytes"),
        (replace(graph(), weights=None, weights_name=None), "'w' in 'weights.bin' instead of None"),
        (replace(graph(), weights_name="other.bin"), "'w' in 'weights.bin' instead of 'other.bin'"),
    ],
    ids=["no graph", "empty", "short graph", "short weights", "no weights", "other weights"],
)
def test_a_damaged_graph_is_an_engine_error(damaged: GraphBytes, said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        create_engine(AUTO, damaged, inputs=INPUTS, outputs=OUTPUTS)
    assert "\n" not in str(caught.value)


def test_the_engine_keeps_nothing_of_the_bytes_it_was_made_from() -> None:
    """The weights can be dropped, and what happens to their memory changes no score."""
    model, weights = graph_files("clean")
    memory = bytearray(weights)
    lent = GraphBytes(model=model, weights=memory, weights_name="weights.bin")  # type: ignore[arg-type]
    engine = create_engine(AUTO, lent, inputs=INPUTS, outputs=OUTPUTS)
    before = engine.run(IMAGES)
    memory[:] = bytes(len(memory))
    assert np.array_equal(engine.run(IMAGES), before)


def test_a_failing_run_is_an_engine_error() -> None:
    engine = create_engine(AUTO, graph(), inputs=INPUTS, outputs=OUTPUTS)
    with pytest.raises(EngineError, match="ONNX Runtime could not run the graph"):
        engine.run(IMAGES[:, :1])


class TestASecondEngine:
    """One that is put first in the list serves, and can be asked for and passed over by name."""

    @pytest.fixture(autouse=True)
    def _first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_rows, "ENGINES", (FASTER, *engine_rows.ENGINES))

    def test_auto_serves_with_it(self, bundle: Path) -> None:
        with SmartModel.load(bundle) as model:
            assert model.engine_name == "faster"
            assert (model(IMAGES) == 7).all()
        with SmartModel.load(bundle, engine=REFERENCE_ENGINE, options=EngineOptions(threads=1)) as model:
            assert np.abs(model(IMAGES) - expected_scores(model.path, IMAGES)).max() < 1e-6

    def test_the_commands_take_it_by_name(self, bundle: Path, tmp_path: Path) -> None:
        picture = tmp_path / "frame.png"
        Image.fromarray(random_images(1)[0]).save(picture)
        for engine, certain in (("auto", False), ("faster", False), (REFERENCE_ENGINE, True)):
            arguments = ["infer", str(bundle), str(picture), "--engine", engine, "--top", "5", "--json"]
            answer = json.loads(CliRunner().invoke(run_command, arguments).output)
            scores = {prediction["probability"] for prediction in answer["results"][0]["predictions"]}
            assert (len(scores) > 1) is certain, engine
        assert CliRunner().invoke(run_command, ["info", str(bundle), "--engine", "faster"]).exit_code == 0

    def test_the_bench_measures_with_it(self, bundle: Path) -> None:
        report = compare({"b": Bundle.open(bundle)}, blocks=2, engine=REFERENCE_ENGINE)
        assert report.engine == REFERENCE_ENGINE

    def test_a_file_of_the_users_own_needs_an_engine_that_opens_it(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match=r"opens bundles only, not '.*own\.onnx'; choose another one"):
            open_engine(AUTO, tmp_path / "own.onnx", shape=INPUTS.shape, batch=1)

    def test_an_engine_that_is_missing_is_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        absent = EngineStatus("faster", available=False, reason="it is not here")
        monkeypatch.setattr("runtime.fakes.faster", lambda _: absent)
        assert resolve_engine(AUTO) == REFERENCE_ENGINE
        with pytest.raises(MissingExtraError, match="this device cannot run faster: it is not here"):
            resolve_engine("faster")


@pytest.mark.parametrize("command", [run_command, bench_command], ids=["smart-run info", "smart-bench"])
def test_a_misspelt_engine_is_one_sentence(bundle: Path, command: Command) -> None:
    group = ["info"] if command is run_command else []
    result = CliRunner().invoke(command, [*group, str(bundle), "--engine", "onnxruntim-cpu"])
    assert result.exit_code == 1
    assert result.output == "error: unknown engine 'onnxruntim-cpu'; did you mean onnxruntime-cpu?\n"


def test_threads_are_said_once(bundle: Path) -> None:
    with pytest.raises(EngineError, match="threads and options cannot be combined"):
        SmartModel.load(bundle, threads=1, options=EngineOptions())


@pytest.mark.skipif(
    not hasattr(onnxruntime, "ModelPackageContext"),
    reason="needs an ONNX Runtime with model packages (1.32 has them, 1.23, the newest for Python 3.10, has not)",
)
def test_onnx_runtime_opens_the_bundle_as_its_own_package(bundle: Path) -> None:
    package = onnxruntime.ModelPackageContext(str(bundle))
    assert sorted(package.get_component_names()) == ["clean", "robust"]
    for name in ("clean", "robust"):
        options = onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions())
        session = package.select_component(name, options).create_session(None)
        (scores,) = session.run(["scores"], {"image": IMAGES})
        np.testing.assert_allclose(scores, expected_scores(name, IMAGES), rtol=0, atol=1e-6)
