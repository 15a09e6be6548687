"""What TensorRT-RTX shows without a GPU, the stand-in shows too: each test here runs on both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx.parser
import pytest

from runtime.bundles import graph_files
from smart_runtime.engines.trt.library import Library, load_library
from smart_runtime.engines.trt.log import Log
from trt.fake_tensorrt import installed
from trt.library_use import IMAGE, configured, inlined_graph

pytestmark = pytest.mark.trt
FOR_ONE = ("8.9",)


@pytest.fixture(params=["real", "stand-in"])
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    """TensorRT-RTX 1.7, and what stands in for it."""
    if request.param == "stand-in":
        with installed("rtx-1.7"):
            yield load_library("tensorrt-rtx")
    else:
        pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX library (extra tensorrt-rtx) is not installed")
        yield load_library("tensorrt-rtx")


class Parsed:
    """What came of parsing a graph."""

    def __init__(self, library: Library, graph: bytes) -> None:
        self.log: Log = library.logger()
        self.builder = library.builder(self.log)
        self.network = library.network(self.builder)
        self.parser = library.module.OnnxParser(self.network, self.log.trt)
        self.well = self.parser.parse(graph)


def graph_of(body: str) -> bytes:
    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3, 6, 4] image) => (float[N, 5] scores) '
    return bytes(onnx.parser.parse_model(head + body).SerializeToString())


def test_logs_speak_through_one_logger(library: Library) -> None:
    first, second = library.logger(), library.logger()
    builders = [library.builder(first), library.builder(second)]
    assert not first.warnings + second.warnings, "a second logger is warned of"
    logger = first.trt
    del first, builders
    assert library.logger().trt is logger, "it stays, for good"


def test_bytes_that_are_no_graph(library: Library) -> None:
    parsed = Parsed(library, b"no graph")
    assert (parsed.well, parsed.parser.num_errors) == (False, 1)
    error = parsed.parser.get_error(0)
    assert (error.code().name, error.node(), error.node_operator()) == ("MODEL_DESERIALIZE_FAILED", -1, "")
    assert "Failed to parse the ONNX model" in library.parse_errors(parsed.parser)[0]
    assert "MODEL_DESERIALIZE_FAILED" in parsed.log.first_error


def test_an_operator_that_it_has_not(library: Library) -> None:
    parsed = Parsed(library, graph_of("{ scores = Nope(image) }"))
    assert not parsed.well
    error = parsed.parser.get_error(0)
    assert (error.node(), error.node_name()) == (0, "")
    assert error.code().name in {"INVALID_NODE", "INTERNAL_ERROR"}  # the latter in 1.4
    (sentence,) = library.parse_errors(parsed.parser)
    assert sentence.startswith(
        ("Nope (node 0): it has no such operator", "Nope (node 0): Op type Nope is not supported")
    )


def test_weights_that_are_not_inside(library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)  # where the real one looks for them
    parsed = Parsed(library, graph_files("clean")[0])
    assert not parsed.well
    assert parsed.parser.get_error(0).code().name == "INVALID_GRAPH"
    (sentence,) = library.parse_errors(parsed.parser)
    assert sentence.startswith("Failed to import initializer")
    assert sentence.endswith(": w")


def test_no_bytes_are_a_network_of_nothing(library: Library) -> None:
    parsed = Parsed(library, b"")
    assert (parsed.well, parsed.network.num_inputs, parsed.network.num_layers) == (True, 0, 0)


def test_what_a_network_says(library: Library) -> None:
    parsed = Parsed(library, inlined_graph())
    network, kinds = parsed.network, library.module.DataType
    assert (parsed.well, network.num_inputs, network.num_outputs) == (True, 1, 1)
    image, scores = network.get_input(0), network.get_output(0)
    assert (image.name, tuple(image.shape), image.dtype) == ("image", (-1, *IMAGE), kinds.FLOAT)
    assert (scores.name, tuple(scores.shape), scores.dtype) == ("scores", (-1, 5), kinds.FLOAT)


def test_a_plan_is_memory_of_the_library(library: Library) -> None:
    parsed = Parsed(library, inlined_graph())
    config = configured(library, parsed.builder, capabilities=("8.6", "8.9"))
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    assert plan.nbytes == len(bytes(plan)) == memoryview(plan).nbytes > 0
    assert not hasattr(plan, "decode")
    with pytest.raises(TypeError):
        len(plan)


def test_sizes_that_vary_need_a_profile(library: Library) -> None:
    parsed = Parsed(library, inlined_graph())
    config = parsed.builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(library.module.ComputeCapability.SM89, 0)
    assert parsed.builder.build_serialized_network(parsed.network, config) is None
    assert "Error Code 4: API Usage Error" in parsed.log.first_error


def test_a_workspace_may_be_too_small(library: Library) -> None:
    parsed = Parsed(library, inlined_graph())
    config = configured(library, parsed.builder, capabilities=FOR_ONE, workspace_bytes=1 << 10)
    assert parsed.builder.build_serialized_network(parsed.network, config) is None
    assert "workspace limit" in parsed.log.first_error


def test_the_current_device_needs_a_driver(library: Library) -> None:
    parsed = Parsed(library, inlined_graph())
    assert parsed.builder.build_serialized_network(parsed.network, configured(library, parsed.builder)) is None
    assert "Error Code 1: Cuda Runtime" in parsed.log.first_error


def test_a_network_without_outputs_is_refused(library: Library) -> None:
    parsed = Parsed(library, b"")
    config = configured(library, parsed.builder, capabilities=FOR_ONE)
    assert parsed.builder.build_serialized_network(parsed.network, config) is None
    assert "Error Code 4" in parsed.log.first_error


def followed(library: Library, parsed: Parsed, answer: Any) -> tuple[bool, list[tuple[Any, ...]]]:
    """Whether a build gave a plan, and what was told; ``answer`` is what to say to a step."""
    events: list[tuple[Any, ...]] = []
    base: Any = library.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            events.append(("start", phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> Any:
            events.append(("step", phase_name, step))
            return answer()

        def phase_finish(self, phase_name: str) -> None:
            events.append(("finish", phase_name))

    config = configured(library, parsed.builder, capabilities=FOR_ONE)
    config.progress_monitor = monitor = Monitor()
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    del monitor
    return plan is not None, events


def assert_nested(events: list[tuple[Any, ...]]) -> None:
    """Phases are within their parents, their steps count up, and each ends; the last of the steps may be left out."""
    running: dict[str, list[int]] = {}
    for kind, name, *more in events:
        if kind == "start":
            parent, steps = more
            assert parent in {None, *running}
            running[name] = [-1, steps]
        elif kind == "step":
            last, steps = running[name]
            assert last < more[0] < steps
            running[name][0] = more[0]
        else:
            del running[name]
    assert not running


def test_a_build_tells_of_its_phases(library: Library) -> None:
    built, events = followed(library, Parsed(library, inlined_graph()), lambda: True)
    assert built
    assert_nested(events)
    assert [event[2] for event in events if event[0] == "start"].count(None) == 1, "all are part of one"
    assert len({event[1] for event in events}) > 3


def test_a_step_answered_with_false_ends_a_build(library: Library) -> None:
    parsed = Parsed(library, inlined_graph())
    built, events = followed(library, parsed, lambda: False)
    assert not built
    assert_nested(events)
    assert [kind for kind, *_ in events].count("step") == 1
    assert "Error Code 7: BuildCanceled" in parsed.log.first_error


def test_a_monitor_that_raises_ends_a_build(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    parsed = Parsed(library, inlined_graph())

    def fail() -> bool:
        raise ValueError("told too much")

    built, _ = followed(library, parsed, fail)
    assert not built
    assert "Error Code 7: BuildCanceled" in parsed.log.first_error
    assert "told too much" in "".join(capfd.readouterr())


def test_watch_tells_the_same(library: Library) -> None:
    parsed = Parsed(library, inlined_graph())
    config = configured(library, parsed.builder, capabilities=FOR_ONE)
    started: list[tuple[str, str | None]] = []
    finished: list[str] = []
    monitor = library.watch(config, started=lambda *phase: started.append(phase), finished=finished.append)
    assert monitor is not None
    assert parsed.builder.build_serialized_network(parsed.network, config) is not None
    assert sorted(name for name, _ in started) == sorted(finished)
    assert finished[-1] == started[0][0]
    assert started[0][1] is None


def test_a_new_configuration(library: Library) -> None:
    config = library.builder(library.logger()).create_builder_config()
    flags, verbosities = library.module.BuilderFlag, library.module.ProfilingVerbosity
    assert (config.num_compute_capabilities, config.builder_optimization_level) == (0, 3)
    assert (config.get_flag(flags.TF32), config.get_flag(flags.SPARSE_WEIGHTS)) == (True, False)
    assert config.profiling_verbosity == verbosities.LAYER_NAMES_ONLY
    assert config.progress_monitor is None
    config.builder_optimization_level = 9
    assert config.builder_optimization_level == 5
    with pytest.raises(AttributeError):
        config.batch = 8
    assert library.use_timing_cache(config, b"") is None


def test_capabilities_are_set_one_by_one(library: Library) -> None:
    config = library.builder(library.logger()).create_builder_config()
    known = library.module.ComputeCapability
    config.num_compute_capabilities = 2
    assert config.set_compute_capability(known.SM86, 0)
    assert config.get_compute_capability(0) == known.SM86
    assert not config.set_compute_capability(known.SM86, 2)


def test_arguments_are_those_of_the_binding(library: Library) -> None:
    builder = library.builder(library.logger())
    with pytest.raises(TypeError):
        builder.create_network(flag=1)
    with pytest.raises(TypeError):
        library.module.Builder(None)
    with pytest.raises(TypeError):
        library.module.IBuilderConfig()
    with pytest.raises(TypeError):
        library.module.OnnxParser(None, library.logger().trt)
