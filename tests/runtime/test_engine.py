from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from runtime.bundles import CHANNELS, CLASSES, HEIGHT, WIDTH, as_float, expected_scores, graph_files, random_images
from smart_common.errors import MissingExtraError
from smart_runtime.bundle.bundle import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import AUTO, ENGINES, create_engine, resolve_engine
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
    engine = create_engine("onnxruntime-cpu", graph(name), inputs=INPUTS, outputs=OUTPUTS, threads=threads)
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
    assert all(resolve_engine(name) == name for name in ENGINES)


def test_unknown_engine() -> None:
    with pytest.raises(EngineError, match="expected an engine among 'auto', 'onnxruntime-cpu', got 'abacus'"):
        create_engine("abacus", graph(), inputs=INPUTS, outputs=OUTPUTS)


@pytest.mark.parametrize("threads", [0, 99_999])
def test_threads_that_cores_cannot_run(threads: int) -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(EngineError, match=f"expected 1 to {cores} threads, .* got {threads}"):
        create_engine(AUTO, graph(), inputs=INPUTS, outputs=OUTPUTS, threads=threads)


def test_closed_twice_then_run() -> None:
    engine = create_engine(AUTO, graph(), inputs=INPUTS, outputs=OUTPUTS)
    engine.close()
    engine.close()
    with pytest.raises(ClosedError, match="open engine"):
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
