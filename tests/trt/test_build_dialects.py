"""Plans built by the stand-ins for TensorRT 8.6 to 11 and RTX in a child, for the device that stands in."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from smart_common.errors import MissingExtraError
from smart_runtime.engines.cuda import device
from smart_runtime.engines.engine import BatchRange
from smart_runtime.engines.trt import plan_worker
from smart_runtime.engines.trt.build import BuildRecipe, BuildRefusedError, build_plan, plan_in_process
from smart_runtime.engines.trt.sparsity import SparsityLog, layers_of
from smart_runtime.errors import EngineError
from trt.builds import INPUTS, OUTPUTS, graph_of, nothing_left, small_graph
from trt.fake_tensorrt import DIALECTS, installed, recorded
from trt.fake_tensorrt.plan import unpack
from trt.machine import found_by_children

TIMED = [dialect for dialect in DIALECTS if not dialect.startswith("rtx")]


@pytest.fixture
def dialect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let children find that TensorRT and the driver without a device."""
    name = str(request.param)
    found_by_children(monkeypatch, name)
    return name


every_dialect = pytest.mark.parametrize("dialect", DIALECTS, indirect=True)


def recipe_for(dialect: str, **changes: Any) -> BuildRecipe:
    recipe = BuildRecipe(
        library="tensorrt-rtx" if dialect.startswith("rtx") else "tensorrt",
        batch=BatchRange(1, 2, 4),
        inputs=INPUTS,
        outputs=OUTPUTS,
    )
    return replace(recipe, **changes)


@every_dialect
def test_a_plan_is_built_for_the_device_and_inspected_there(dialect: str) -> None:
    phases: list[str] = []
    with nothing_left():
        built = build_plan(small_graph(), recipe_for(dialect), on_phase=lambda name, _: phases.append(name))
    assert built.version == recorded(dialect)["version"]
    plan = unpack(built.plan, str(recorded(dialect)["module"]), built.version)
    assert plan.inputs[0].profile == tuple((size, *INPUTS.shape) for size in (1, 2, 4))
    assert plan.capabilities == ("8.7",)  # of the device that stands in
    assert plan.detailed
    assert built.layers == 5
    assert (built.eligible, built.sparse) == (None, None if dialect.startswith("rtx") else 0)
    assert phases.index(plan_worker.BUILDING) < phases.index(plan_worker.INSPECTING)
    assert ("Building engine" in phases) is (dialect != "8.6")  # which tells nothing


@every_dialect
def test_a_graph_that_it_does_not_read_is_refused_with_the_operator(dialect: str) -> None:
    graph = graph_of("a = Bernouli(image) scores = Relu(a)")
    with nothing_left(), pytest.raises(BuildRefusedError) as caught:
        build_plan(graph, recipe_for(dialect, outputs=None))
    assert ("node 0" if dialect == "8.6" else "Bernouli (node 0)") in caught.value.reason


def two_four(rows: int, *, is_two_four: bool) -> Any:
    weights = np.ones((rows, 3 * 6 * 4), np.float32)
    weights[:, ::2] = 0 if is_two_four else 1
    return weights.T


@pytest.mark.parametrize("dialect", TIMED, indirect=True)
@pytest.mark.parametrize("pruned", [0, 1, 3])
def test_layers_that_compute_sparsely_are_counted_even_if_there_are_none(dialect: str, pruned: int) -> None:
    text = """
        flat = Flatten(image)
        a = MatMul(flat, w0)
        b = MatMul(flat, w1)
        c = MatMul(flat, w2)
        ab = Add(a, b)
        scores = Add(ab, c)
    """
    weights = {f"w{number}": two_four(5, is_two_four=number < pruned) for number in range(3)}
    graph = graph_of(text, output=f"N, {OUTPUTS.classes}", **weights)
    built = build_plan(graph, recipe_for(dialect, sparse_weights=True))
    assert built.eligible == pruned
    assert built.sparse == max(pruned - 1, 0)


@pytest.mark.parametrize("dialect", TIMED, indirect=True)
def test_what_builds_measured_is_kept_together(dialect: str, tmp_path: Path) -> None:
    file = tmp_path / "timings"
    recipe = recipe_for(dialect, timing_cache=file)
    build_plan(small_graph(), recipe)
    first = file.read_bytes()
    assert b"node_of_hidden" in first
    build_plan(graph_of("other = Relu(image) scores = Relu(other)"), replace(recipe, outputs=None))
    assert b"node_of_other" in file.read_bytes()
    assert b"node_of_hidden" in file.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["timings"]


@pytest.mark.parametrize("dialect", ["10.3"], indirect=True)
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 1000])
def test_a_damaged_file_of_timings_is_replaced(dialect: str, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "timings"
    file.write_bytes(content)
    assert build_plan(small_graph(), recipe_for(dialect, timing_cache=file)).plan
    assert b"node_of_hidden" in file.read_bytes()


@pytest.mark.parametrize("dialect", ["10.3"], indirect=True)
def test_a_file_of_timings_that_cannot_be_written_is_no_reason_to_fail(dialect: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", link, tmp_path, tmp_path / "missing/timings"):
        assert build_plan(small_graph(), recipe_for(dialect, timing_cache=place)).plan
    assert not elsewhere.exists()


@pytest.mark.parametrize("dialect", ["rtx-1.7"], indirect=True)
def test_a_library_that_times_nothing_writes_nothing(dialect: str, tmp_path: Path) -> None:
    assert build_plan(small_graph(), recipe_for(dialect, timing_cache=tmp_path / "timings")).plan
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dialect", TIMED, indirect=True)
def test_tensorrt_does_not_build_for_other_cards(dialect: str) -> None:
    with pytest.raises(EngineError, match=r"TensorRT .* builds for the device that it is on"):
        build_plan(small_graph(), recipe_for(dialect, capabilities=("8.6",)))


@pytest.mark.parametrize("dialect", ["10.3"], indirect=True)
def test_a_device_that_is_not_there_is_said_before_anything_of_tensorrt_is_made(dialect: str) -> None:
    with nothing_left(), pytest.raises(EngineError, match="there is no GPU 9"):
        build_plan(small_graph(), recipe_for(dialect, device=9))


def test_the_log_of_8_6_names_layers_and_the_inspector_kernels() -> None:
    log = SparsityLog()
    log.heard("(Sparsity) Layers eligible for sparse math: conv1 + relu1, conv2")
    assert (log.eligible, log.chosen) == (2, None)
    log.heard("(Sparsity) TRT inference plan picked sparse implementation for layers:")
    assert (log.eligible, log.chosen) == (2, 0)
    log.heard("(Sparsity) Found 12 layer(s) eligible to use sparse tactics: a, b")
    log.heard("(Sparsity) Chose 3 layer(s) using sparse tactics: a")
    assert (log.eligible, log.chosen) == (12, 3)
    log.heard("(Sparsity) Anything else")
    assert (log.eligible, log.chosen) == (12, 3)


@pytest.mark.parametrize(
    ("information", "expected"),
    [
        ('{"Layers": [{"TacticName": "sm80_xmma_fprop_sparse_conv_x"}, {"TacticName": ""}, {}]}', (3, 1)),
        ('{"Layers": [{"Name": "a"}, {"Name": "b"}], "Bindings": []}', (2, None)),
        ('{"Layers": ["a", "b"]}', (2, None)),
        ('{"Layers": []}', (0, None)),
        ('{"Layers": 3}', (None, None)),
        ("[]", (None, None)),
        ("no JSON", (None, None)),
        ("", (None, None)),
    ],
)
def test_what_an_inspector_says_is_counted(information: str, expected: tuple[int | None, int | None]) -> None:
    assert layers_of(information) == expected


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "code"), [("8.6", 1), ("10.3", 2), ("10.3", 700), ("rtx-1.7", 999)], ids=str)
def test_a_driver_that_fails_at_any_call_gives_our_errors_and_leaves_nothing(
    name: str, code: int, every: int, stand_in: StandInDriver
) -> None:
    graph, recipe = small_graph(), recipe_for(name)
    with installed(name):
        for after in range(code % every, 1000, every):
            stand_in.reset()
            device._processes.clear()  # a lost device stays lost in its process; here each build has one of its own
            stand_in.fail(after, code)
            before = stand_in.calls()
            try:
                plan_in_process(graph, recipe)
            except (EngineError, MissingExtraError) as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017  # whatever failed, it says so
            else:
                if stand_in.calls() - before <= after:
                    break
            gc.collect()
            assert not stand_in.leaks()
    assert after > 20
