"""Plans by the real TensorRT-RTX builder in a child process, and what it refuses."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundles import as_float, graph_files, random_images
from smart_common.errors import MissingExtraError
from smart_runtime.engines.engine import BatchRange
from smart_runtime.engines.trt import build, plan_worker
from smart_runtime.engines.trt.build import BuildRecipe, BuildRefusedError, build_plan, plan_in_process
from smart_runtime.errors import EngineError
from trt.builds import (
    INPUTS,
    OUTPUTS,
    RECIPE,
    Children,
    files_opened_in,
    graph_of,
    nothing_left,
    small_graph,
)

pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX library (extra tensorrt-rtx) is not installed")
pytestmark = pytest.mark.trt


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    return Children(monkeypatch)


def test_a_plan_comes_out_of_a_child_with_what_is_known_of_it() -> None:
    import tensorrt_rtx  # noqa: PLC0415  # an engine is imported at use

    told: list[tuple[str, float]] = []
    with nothing_left():
        built = build_plan(small_graph(), RECIPE, on_phase=lambda *seen: told.append(seen))
    assert built.version == tensorrt_rtx.__version__
    assert (built.layers, built.eligible, built.sparse) == (None, None, None)  # its GPU is not here
    assert built.seconds > 0
    assert built.peak_bytes is not None
    assert built.peak_bytes > len(built.plan)
    here = plan_in_process(small_graph(), RECIPE)
    header = tensorrt_rtx.Runtime(tensorrt_rtx.Logger()).engine_header_size
    assert len(built.plan) == len(here.plan)  # two builds differ in a few bytes that look like addresses
    assert built.plan[:header] == here.plan[:header]
    phases = [name for name, _ in told]
    assert phases.index(plan_worker.READING) < phases.index(plan_worker.BUILDING) < phases.index("Building engine")
    times = [seconds for _, seconds in told]
    assert times == sorted(times)


def test_a_recipe_is_heeded() -> None:
    plain = build_plan(small_graph(), RECIPE)
    weightless = replace(
        RECIPE, capabilities=("8.6", "8.9"), batch=BatchRange(1, 64, 64), sparse_weights=True, tf32=True
    )
    other = build_plan(small_graph(), weightless)
    assert plain.plan != other.plan


def test_operators_that_it_does_not_have_are_named() -> None:
    graph = graph_of("a = Bernoulli(image) b = Det(image) scores = Add(a, b)")
    with nothing_left(), pytest.raises(BuildRefusedError, match=r"Bernoulli \(node 0\): .* no such operator") as caught:
        build_plan(graph, replace(RECIPE, outputs=None))
    assert "Det (node 1)" in caught.value.reason
    assert caught.value.library.startswith("TensorRT-RTX 1.")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": replace(INPUTS, name="picture")}, r"expected a graph with the input float picture \(-1, 3, 6, 4\)"),
        ({"inputs": replace(INPUTS, height=7)}, r"\(-1, 3, 7, 4\), got float image \(-1, 3, 6, 4\)"),
        ({"outputs": replace(OUTPUTS, classes=9)}, r"the output float scores \(-1, 9\), got float scores \(-1, 5\)"),
        ({"capabilities": ("8.7",)}, r"does not build for compute capability '8\.7'"),
    ],
)
def test_a_graph_or_a_card_other_than_the_recipes_is_refused(change: dict[str, Any], said: str) -> None:
    with nothing_left(), pytest.raises(EngineError, match=said):
        build_plan(small_graph(), replace(RECIPE, **change))


def test_a_graph_that_is_not_built_after_it_was_read_is_refused_in_the_librarys_words() -> None:
    with pytest.raises(BuildRefusedError, match="FP32 GEMM is not supported"):  # on Turing
        build_plan(small_graph(), replace(RECIPE, capabilities=("7.5",)))


@pytest.mark.parametrize(
    ("text", "tensors", "said"),
    [
        (
            "q = QuantizeLinear(image, scale, zero) scores = DequantizeLinear(q, scale, zero)",
            {"scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8)},
            r"recipe 'cpu' \(QuantizeLinear \(no name\) with 'zero' in uint8\)",
        ),
        (
            "b = DequantizeLinear(bias, scale) scores = Add(image, b)",
            {"scale": np.array(0.1, np.float32), "bias": np.array([3, 4, 5, 6], np.int32)},
            r"recipe 'cpu' \(DequantizeLinear \(no name\) with 'bias' in int32\)",
        ),
    ],
)
def test_the_int8_of_a_cpu_is_refused_before_anything_is_started(
    text: str, tensors: dict[str, Any], said: str, children: Children
) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        build_plan(graph_of(text, **tensors), RECIPE)
    assert "--target" in str(caught.value)
    assert children.pids == []


@pytest.mark.slow  # the quantizer takes seconds to import
def test_of_the_exports_two_recipes_the_one_for_a_gpu_is_built() -> None:
    pytest.importorskip("onnx_ir", reason="needs the extra export")
    import onnx_ir  # noqa: PLC0415

    from smart_export.quantise import quantised  # noqa: PLC0415  # loads onnxruntime's quantizer

    model = onnx_ir.from_proto(onnx.load_from_string(small_graph()))
    images = as_float(random_images(16))
    gpu, cpu = (
        onnx_ir.to_proto(quantised(model, images, recipe=recipe)).SerializeToString() for recipe in ("tensorrt", "cpu")
    )
    assert build_plan(gpu, replace(RECIPE, precision="int8")).plan
    with pytest.raises(EngineError, match="recipe 'cpu'"):
        build_plan(cpu, replace(RECIPE, precision="int8"))


def test_the_int8_of_a_gpu_is_not() -> None:
    graph = graph_of(
        "q = QuantizeLinear(image, scale, zero) scores = DequantizeLinear(q, scale, zero)",
        scale=np.array(0.1, np.float32),
        zero=np.array(0, np.int8),
    )
    assert build_plan(graph, replace(RECIPE, outputs=None, precision="int8")).plan


@pytest.mark.parametrize("model", [b"", b"\xff" * 100, b"nonsense", b"\x3a\x02\x0a"])
def test_bytes_that_are_no_onnx_file_are_refused(model: bytes) -> None:
    with nothing_left(), pytest.raises(EngineError):
        build_plan(model, RECIPE)


def test_nothing_in_the_working_directory_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("weights.bin", "numpy.py", "tensorrt_rtx.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('hostile')\n")
    monkeypatch.chdir(tmp_path)
    with files_opened_in(tmp_path) as opened:
        build_plan(small_graph(), RECIPE)
    assert opened == []
    outside, _ = graph_files("clean")  # as a bundle has it: this is what must never reach the parser
    with files_opened_in(tmp_path) as opened, pytest.raises(BuildRefusedError):
        build_plan(outside, RECIPE)
    assert opened == [b"weights.bin"]


def test_the_child_yields_to_everyone_and_dies_first(children: Children) -> None:
    seen: list[tuple[int, str]] = []

    def look(*_: object) -> None:
        score = Path(f"/proc/{children.pid}/oom_score_adj").read_text().strip()
        seen.append((os.getpriority(os.PRIO_PROCESS, children.pid), score))

    build_plan(small_graph(), RECIPE, on_phase=look)
    nice, score = seen[-1]
    assert nice == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    assert score == "1000"


def link(file: Path) -> str:
    """What an open file of the child is; nothing if it has just been closed."""
    with suppress(FileNotFoundError):
        return os.readlink(file)  # noqa: PTH115
    return ""


def test_the_graph_is_sealed_in_memory_and_has_no_path(children: Children) -> None:
    tried: list[int] = []

    def tamper(*_: object) -> None:
        files = Path(f"/proc/{children.pid}/fd").iterdir()
        graph = next(file for file in files if "smart-edge-graph" in link(file))
        with pytest.raises(PermissionError), graph.open("r+b", 0) as file:
            tried.append(file.write(b"other weights"))
        with pytest.raises(PermissionError):
            os.truncate(graph, 0)
        tried.append(0)

    build_plan(small_graph(), RECIPE, on_phase=tamper)
    assert set(tried) == {0}


def test_what_the_library_prints_stays_out_of_everything(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is imported first in the child prints past Python on both, and a line that looks like an answer."""
    (tmp_path / "tensorrt_rtx.py").write_text(
        "import os, sys\n"
        """os.write(1, b'{"done": {}}\\n'); os.write(2, b'\\xff nonsense\\n')\n"""
        f"sys.path.remove({str(tmp_path)!r}); del sys.modules['tensorrt_rtx']\n"
        "import tensorrt_rtx\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build_plan(small_graph(), RECIPE).plan
    assert capfd.readouterr() == ("", "")


def test_without_a_driver_no_plan_for_this_device_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TensorRT's objects made first, this would be a segmentation fault."""
    try:
        with nothing_left():
            build_plan(small_graph(), replace(RECIPE, capabilities=None))
    except MissingExtraError as error:
        assert "libcuda.so.1" in str(error)  # noqa: PT017  # where there is a GPU the plan is built


def test_without_the_library_its_absence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('libnvinfer.so.10: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with nothing_left(), pytest.raises(MissingExtraError, match=r"TensorRT-RTX cannot be imported: libnvinfer\.so\.10"):
        build_plan(small_graph(), RECIPE)


def test_a_plan_that_was_damaged_on_its_way_is_refused() -> None:
    done = {"version": "1", "seconds": 1.0, "layers": None, "eligible": None, "sparse": None, "peak_bytes": None}
    with build._memory_files("plan")[0] as file:
        file.write(b"plan")
        told: dict[str, Any] = {"done": done, "bytes": 4, "sha256": "0" * 64}
        with pytest.raises(EngineError, match="damaged on its way"):
            build._plan_of(told, file)
        with pytest.raises(EngineError, match="damaged on its way"):
            build._plan_of(told | {"bytes": 5}, file)


_OLD = os.environ.get("SMART_EDGE_OLD_RTX", "")


@pytest.mark.skipif(
    not _OLD, reason="SMART_EDGE_OLD_RTX names no folder with the oldest TensorRT-RTX, 1.4 (pip --target)"
)
def test_the_oldest_library_builds_and_refuses_as_the_newest_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_OLD)  # a child looks where its parent does
    phases: list[str] = []
    with nothing_left():
        built = build_plan(small_graph(), RECIPE, on_phase=lambda name, _: phases.append(name))
    assert built.version.startswith("1.4.")
    assert "Building engine" in phases
    graph = graph_of("a = Bernoulli(image) b = Det(image) scores = Add(a, b)")
    with nothing_left(), pytest.raises(BuildRefusedError, match=r"Bernoulli \(node 0\)"):
        build_plan(graph, replace(RECIPE, outputs=None))
    with pytest.raises(EngineError, match="does not build for compute capability"):
        build_plan(small_graph(), replace(RECIPE, capabilities=("9.0",)))


_TEXT = st.text(max_size=9)
_RECIPES = st.builds(
    BuildRecipe,
    library=st.sampled_from(["tensorrt", "tensorrt-rtx"]),
    batch=st.lists(st.integers(1, 2**16), min_size=3, max_size=3).map(lambda sizes: BatchRange(*sorted(sizes))),
    inputs=st.builds(replace, st.just(INPUTS), name=_TEXT, channels=st.integers(1)),
    outputs=st.none() | st.builds(replace, st.just(OUTPUTS), name=_TEXT, classes=st.integers(1)),
    precision=st.sampled_from(["fp32", "fp16", "int8"]),
    tf32=st.booleans(),
    sparse_weights=st.booleans(),
    workspace_bytes=st.none() | st.integers(1, 2**60),
    level=st.integers(0, 5),
    device=st.integers(0, 9),
    capabilities=st.none() | st.lists(_TEXT, max_size=3).map(tuple),
    timing_cache=st.none() | st.sampled_from(["/a/b", "ü b"]).map(Path),
    weightless=st.booleans(),
)


@given(_RECIPES)
def test_a_recipe_comes_back_from_json(recipe: BuildRecipe) -> None:
    assert BuildRecipe.from_document(json.loads(json.dumps(recipe.document))) == recipe
