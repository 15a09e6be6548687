"""What NVIDIA calls undefined, the stand-in refuses or writes down: each rule is broken once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import expected_scores
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.trt.library import Library, load_library
from trt.fake_tensorrt import DIALECTS, UNDEFINED, Undefined, installed
from trt.library_use import IMAGE, MAX_BATCH, Running, built, inlined_graph, name_of

IMAGES = (np.random.default_rng(1).integers(0, 9, (2, *IMAGE)) / 8).astype(np.float32)


@pytest.fixture(params=["8.6", "10.3", "rtx-1.7"])
def library(request: pytest.FixtureRequest, stand_in: StandInDriver) -> Iterator[Library]:
    """An imported stand-in; what is found by the end was meant."""
    with installed(request.param):
        yield load_library(name_of(request.param))
    UNDEFINED.clear()


@pytest.fixture
def device(library: Library) -> Iterator[Device]:
    """A device whose context is current."""
    device = Device.shared(0)
    with device.use():
        yield device


@pytest.fixture
def running(library: Library, device: Device) -> Iterator[Running]:
    """A graph that has run once."""
    running = Running(library, device, built(library))
    running.run(IMAGES)
    assert not UNDEFINED
    yield running
    running.stream.synchronize()
    running.close()


def refused(what: str, use: Callable[[], Any]) -> None:
    """Check that a use raises, and is written down for those who catch everything."""
    UNDEFINED.clear()
    with pytest.raises(Undefined, match=what):
        use()
    assert len(UNDEFINED) == 1


def test_a_runtime_before_the_driver_is_in_use_is_a_crash(library: Library) -> None:
    refused("before the driver", lambda: library.module.Runtime(library.logger().trt))


def test_a_runtime_without_a_current_context_is_a_crash(library: Library) -> None:
    Device.shared(0)
    refused("no context", lambda: library.module.Runtime(library.logger().trt))


def test_only_tensorrt_rtx_makes_a_builder_without_a_driver(library: Library) -> None:
    if library.name == "tensorrt-rtx":
        assert built(library, capabilities=("8.6", "8.9"))
    else:
        refused("before the driver", lambda: library.module.Builder(library.logger().trt))


def test_one_context_runs_in_one_stream_at_a_time(running: Running, device: Device, stand_in: StandInDriver) -> None:
    gate, other = device.stream(), device.stream()
    stand_in.delay(400_000)
    assert running.context.execute_async_v3(gate.handle)
    refused("two streams", lambda: running.context.execute_async_v3(other.handle))
    gate.synchronize()
    assert running.context.execute_async_v3(other.handle)
    other.synchronize()
    gate.release()


def test_two_contexts_that_run_at_once_share_no_activation_memory(
    running: Running, device: Device, stand_in: StandInDriver
) -> None:
    other, stream = running.new_context(), device.stream()
    assert other.set_input_shape("image", IMAGES.shape)
    stand_in.delay(400_000)
    assert running.context.execute_async_v3(running.stream.handle)
    refused("two calls at once", partial(other.execute_async_v3, stream.handle))
    running.stream.synchronize()
    assert other.execute_async_v3(stream.handle)  # one after the other
    stream.synchronize()
    del other
    stream.release()


def test_two_calls_in_one_stream_may_share_everything(running: Running) -> None:
    other = running.new_context()
    assert other.set_input_shape("image", IMAGES.shape)
    assert all(context.execute_async_v3(running.stream.handle) for context in (running.context, other) * 3)
    running.stream.synchronize()
    del other
    assert not UNDEFINED


def test_activation_memory_that_holds_something_else_is_overwritten(running: Running) -> None:
    running.context.set_tensor_address("image", running.scratch.address)
    running.images, running.scratch = running.scratch, running.images
    scores = running.run(IMAGES)
    assert not np.allclose(scores, expected_scores("clean", IMAGES), equal_nan=False)


def test_a_second_context_has_no_profile_in_8_6_until_it_is_set(library: Library, running: Running) -> None:
    engine: Any = running.engine
    in_8_6 = hasattr(library.module.BuilderFlag, "FP16") and not hasattr(engine, "device_memory_size_v2")
    bare = engine.create_execution_context_without_device_memory() if in_8_6 else running.new_context()
    assert bare.set_input_shape("image", IMAGES.shape) != in_8_6
    assert bare.set_optimization_profile_async(0, running.stream.handle)
    assert bare.set_input_shape("image", IMAGES.shape)
    del bare


def test_the_first_logger_outlives_all_that_it_was_not_given_to(library: Library, device: Device) -> None:
    """What `Library.logger` is for: with a logger for each, the real library ends in a segmentation fault."""
    first, second = (library_own_logger(library) for _ in range(2))
    one, other = library.module.Runtime(first), library.module.Runtime(second)
    assert second.said == ["The logger passed into createInferRuntime differs from one already registered"]
    del one, first
    refused("logger was destroyed", lambda: library.deserialize(other, b"no plan"))


def library_own_logger(library: Library) -> Any:
    base: Any = library.module.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, msg: str) -> None:  # noqa: ARG002
            self.said.append(msg)

    return Logger()


def test_activation_memory_is_aligned_and_large_enough(running: Running) -> None:
    address, needed = running.scratch.address, running.library.activation_bytes(running.engine)
    refused("aligned", lambda: running.library.set_activation_memory(running.context, address + 128, needed))
    if hasattr(running.context, "set_device_memory"):
        refused("needed", lambda: running.context.set_device_memory(address, needed - 1))


def test_a_context_does_not_run_without_activation_memory(running: Running) -> None:
    context = running.library.new_context(running.engine, stream=running.stream.handle)
    assert context is not None
    context.set_tensor_address("image", running.images.address)
    context.set_tensor_address("scores", running.scores.address)
    assert context.set_input_shape("image", IMAGES.shape)
    refused("without activation memory", partial(context.execute_async_v3, running.stream.handle))
    del context


def test_an_engine_that_needs_no_activation_memory_runs_without(library: Library, device: Device) -> None:
    library.module._world.activation_bytes = 0
    running = Running(library, device, built(library))
    context = library.new_context(running.engine, stream=running.stream.handle)
    assert context is not None
    context.set_tensor_address("image", running.images.address)
    context.set_tensor_address("scores", running.scores.address)
    running.context = context
    del context
    np.testing.assert_allclose(running.run(IMAGES), expected_scores("clean", IMAGES), rtol=1e-6)
    running.close()
    assert not UNDEFINED


def test_a_tensor_without_an_address_or_shape_is_an_error_of_the_library(running: Running) -> None:
    context = running.library.new_context(running.engine, stream=running.stream.handle)
    assert context is not None
    running.library.set_activation_memory(context, running.scratch.address, running.scratch.bytes)
    assert not context.execute_async_v3(running.stream.handle)
    assert "shape of image is not set" in running.log.last_error
    assert context.set_input_shape("image", IMAGES.shape)
    assert not context.execute_async_v3(running.stream.handle)
    assert "address of image, scores is not set" in running.log.last_error
    del context
    assert not UNDEFINED


@pytest.mark.parametrize("shape", [(0, *IMAGE), (MAX_BATCH + 1, *IMAGE), (1, 3, 6, 5), (1, 3, 6)])
def test_a_shape_outside_of_the_profile_is_an_error_of_the_library(running: Running, shape: tuple[int, ...]) -> None:
    assert not running.context.set_input_shape("image", shape)
    assert running.log.errors


def test_a_name_that_is_none_is_an_error_of_the_library(running: Running) -> None:
    assert not running.context.set_tensor_address("picture", running.images.address)
    assert not running.context.set_input_shape("scores", (1, 5))
    assert len(running.log.errors) == 2


def test_contexts_go_before_their_engine_and_engines_before_their_runtime(running: Running) -> None:
    running.engine = None
    assert UNDEFINED == ["an engine was destroyed before its contexts"]
    running.context = None
    UNDEFINED.clear()
    library, log = running.library, running.log
    runtime = library.module.Runtime(log.trt)
    engine = library.deserialize(runtime, built(library))
    del runtime
    assert UNDEFINED == ["a Runtime was destroyed before its engines"]
    del engine


def test_a_context_is_not_destroyed_while_it_runs(running: Running, stand_in: StandInDriver) -> None:
    stand_in.delay(400_000)
    assert running.context.execute_async_v3(running.stream.handle)
    running.context = None
    assert UNDEFINED == ["a context was destroyed while it was running"]


def test_activation_memory_is_not_taken_from_a_running_context(running: Running, stand_in: StandInDriver) -> None:
    stand_in.delay(400_000)
    assert running.context.execute_async_v3(running.stream.handle)
    set_memory = running.library.set_activation_memory
    refused("running", lambda: set_memory(running.context, running.scratch.address, running.scratch.bytes))


def test_a_forked_child_uses_nothing(running: Running) -> None:
    child = os.fork()
    if not child:
        try:
            running.context.execute_async_v3(running.stream.handle)
        except Undefined:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_context_of_another_device_is_not_used(running: Running) -> None:
    other = Device.shared(1)
    with other.use():
        refused("another context", lambda: running.context.execute_async_v3(running.stream.handle))


def test_a_damaged_plan_is_run_by_the_real_library(library: Library, device: Device) -> None:
    plan = bytearray(built(library))
    plan[len(plan) // 2] ^= 1
    runtime = library.module.Runtime(library.logger().trt)
    refused("bytes are not those", lambda: library.deserialize(runtime, bytes(plan)))


@pytest.mark.parametrize("other", DIALECTS)
def test_a_plan_of_another_version_is_not_opened(library: Library, device: Device, other: str) -> None:
    with installed(other):
        foreign = built(load_library(name_of(other)))
    log = library.logger()
    runtime = library.module.Runtime(log.trt)
    engine = library.deserialize(runtime, foreign)
    assert (engine is not None) == (library.version == installed_version(other)), log.errors
    assert bool(log.errors) == (engine is None)
    del engine


def installed_version(dialect: str) -> str:
    with installed(dialect) as module:
        return str(module.__version__)


@pytest.mark.parametrize("data", [b"", b"x" * 300], ids=["empty", "foreign"])
def test_what_is_no_plan_is_not_opened(library: Library, device: Device, data: bytes) -> None:
    log = library.logger()
    assert library.deserialize(library.module.Runtime(log.trt), data) is None
    assert "Error Code 1" in log.last_error


def test_a_plan_is_for_a_compute_capability(library: Library, device: Device, stand_in: StandInDriver) -> None:
    plan, log = built(library), library.logger()
    stand_in.device(capability=(8, 9))
    assert library.deserialize(library.module.Runtime(log.trt), plan) is None
    assert "compute capability 8.7, not 8.9" in log.last_error


def test_another_number_of_multiprocessors_is_warned_of(
    library: Library, device: Device, stand_in: StandInDriver
) -> None:
    plan, log = built(library), library.logger()
    stand_in.device(multiprocessors=8)
    runtime = library.module.Runtime(log.trt)
    engine = library.deserialize(runtime, plan)
    assert engine is not None
    assert len(log.warnings) == (library.name == "tensorrt")  # TensorRT-RTX compiles for what it finds
    del engine


def test_too_little_memory_for_the_weights_is_an_error_of_the_library(
    library: Library, device: Device, stand_in: StandInDriver
) -> None:
    plan, log = built(library), library.logger()
    stand_in.total(stand_in.used() + 16)
    assert library.deserialize(library.module.Runtime(log.trt), plan) is None
    assert "cuMemAlloc_v2 returned 2" in log.last_error


def test_a_parser_opens_no_file(library: Library, device: Device) -> None:
    builder = library.module.Builder(library.logger().trt)
    parser = library.module.OnnxParser(library.network(builder), library.logger().trt)
    refused("a path", lambda: parser.parse(inlined_graph(), "model.onnx"))
