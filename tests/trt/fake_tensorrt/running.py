"""What runs a plan: the superset of all versions, which `bindings.fitted` cuts down to one.

Each engine holds device memory as large as its graph. A context fills its activation memory with a pattern before it
computes and looks for it afterwards, so that memory in use by two calls at once is found.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from trt.fake_tensorrt.bindings import Bound, Value
from trt.fake_tensorrt.execution import Call, Context, execute
from trt.fake_tensorrt.plan import DamagedPlan, ForeignPlan, Plan, Tensor, unpack
from trt.fake_tensorrt.rules import UNDEFINED, Cuda, DriverError, undefined


@dataclass
class Core:
    """What an engine's contexts share with it, and outlives it."""

    plan: Plan
    session: Any
    cuda: Cuda
    logger: Any
    activation_bytes: int
    contexts: int = 0
    made_of: dict[str, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor | None:
        return next((tensor for tensor in (*self.plan.inputs, *self.plan.outputs) if tensor.name == name), None)

    def check_current(self, what: str) -> None:
        if Cuda(what).context != self.cuda.context:
            raise undefined(f"{what} while another context of the driver was current")


class Runtime(Bound):
    """Turns plans into engines."""

    max_threads = Value(1)
    engine_host_code_allowed = Value(False)
    defer_weights_loading = Value(False)

    def __init__(self, logger: Any) -> None:
        if not isinstance(logger, self._world.module.ILogger):
            raise TypeError("__init__(): incompatible constructor arguments")
        self._pid = os.getpid()
        self._engines: list[Core] = []
        Cuda("a Runtime was made")
        self._world.register(logger, "createInferRuntime")
        self._logger = logger

    def __del__(self) -> None:
        if hasattr(self, "_logger"):
            self._world.unregister()
        if getattr(self, "_engines", None) and not sys.is_finalizing() and os.getpid() == self._pid:
            UNDEFINED.append("a Runtime was destroyed before its engines")

    @property
    def logger(self) -> Any:
        return self._logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any | None:
        self._enter()
        world = self._world
        world.plans_opened += 1
        try:
            cuda = Cuda("a plan was deserialised")
            plan = unpack(bytes(memoryview(serialized_engine)), world.name, world.version)
            self._check_device(plan, cuda)
            weights = cuda.allocate(len(plan.graph))
        except DamagedPlan as damage:
            raise undefined(str(damage)) from None
        except (ForeignPlan, DriverError) as why:
            error = world.module.ILogger.ERROR
            self._logger.log(error, f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({why})")
            return None
        needed = plan.activation_bytes if world.activation_bytes is None else world.activation_bytes
        core = Core(plan, _session(plan.graph), cuda, self._logger, needed)
        self._engines.append(core)
        return world.new("ICudaEngine", core=core, weights=weights, siblings=self._engines)

    def _check_device(self, plan: Plan, cuda: Cuda) -> None:
        capability, multiprocessors = cuda.device()
        if capability not in plan.capabilities:
            raise ForeignPlan(f"the plan is for compute capability {', '.join(plan.capabilities)}, not {capability}")
        if plan.multiprocessors not in {None, multiprocessors}:
            words = "Using an engine plan file across different models of devices is not recommended"
            self._logger.log(self._world.module.ILogger.WARNING, words)

    engine_header_size = 64

    def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
        module = self._world.module
        try:
            unpack(bytes(memoryview(buffer)), self._world.name, self._world.version)
        except ForeignPlan:
            return module.EngineValidity.INVALID, int(module.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        except DamagedPlan:
            pass  # that is not what it looks for
        return module.EngineValidity.VALID, 0


def _session(graph: bytes) -> Any:
    import onnxruntime  # noqa: PLC0415  # only where a plan is run

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class ICudaEngine(Bound):
    """A graph on the device; its contexts must be gone before it goes."""

    _core: Core
    _weights: int
    _siblings: list[Core]

    def __del__(self) -> None:
        if sys.is_finalizing() or os.getpid() != self._pid:
            return
        if self._core.contexts:
            UNDEFINED.append("an engine was destroyed before its contexts")
        self._siblings.remove(self._core)
        self._core.cuda.free(self._weights)

    def create_execution_context(self, strategy: Any = None, runtime_config: Any = None) -> Any | None:
        config = runtime_config
        if hasattr(self._world.module, "IRuntimeConfig") and isinstance(strategy, self._world.module.IRuntimeConfig):
            strategy, config = None, strategy
        if config is not None:
            strategy = config._strategy
        if strategy is None or strategy.name != "USER_MANAGED":
            raise NotImplementedError("the stand-in has no activation memory of its own")
        return self._context(None if config is None else config._cache)

    def create_execution_context_without_device_memory(self) -> Any | None:
        return self._context(None)

    def _context(self, cache: Any) -> Any | None:
        self._enter()
        try:
            self._core.check_current("a context was made")
        except DriverError as error:
            self._core.logger.log(self._world.module.ILogger.ERROR, f"Error Code 1: Cuda Runtime ({error})")
            return None
        has_profile = not (self._world.version.startswith("8.") and self._core.contexts)
        self._core.contexts += 1
        fixed = {t.name: t.shape for t in self._core.plan.inputs if -1 not in t.shape}
        state = Context(fixed=fixed, has_profile=has_profile)
        return self._world.new("IExecutionContext", core=self._core, state=state, cache=cache)

    def create_runtime_config(self) -> Any:
        self._enter()
        return self._world.new("IRuntimeConfig", strategy=None, cache=None)

    def create_engine_inspector(self) -> Any:
        self._enter()
        return self._world.new("EngineInspector", plan=self._core.plan)

    @property
    def device_memory_size(self) -> int:
        return self._core.activation_bytes

    @property
    def device_memory_size_v2(self) -> int:
        return self._core.activation_bytes

    @property
    def num_layers(self) -> int:
        return len(self._core.plan.layers)

    @property
    def num_optimization_profiles(self) -> int:
        return 1

    @property
    def num_aux_streams(self) -> int:
        return 0

    @property
    def num_io_tensors(self) -> int:
        return len(self._core.plan.inputs) + len(self._core.plan.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._core.plan.inputs, *self._core.plan.outputs][index].name

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._world.module.TensorIOMode
        tensor = self._core.tensor(name)
        if tensor is None:
            return mode.NONE
        return mode.INPUT if tensor in self._core.plan.inputs else mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._known(name).shape

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._world.module.DataType, self._known(name).dtype)

    def get_tensor_location(self, name: str) -> Any:
        self._known(name)
        return self._world.module.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return list(self._known(name).profile) if profile_index == 0 else []

    def _known(self, name: str) -> Tensor:
        tensor = self._core.tensor(name)
        if tensor is None:
            raise undefined(f"an engine was asked for a tensor that it has not: {name}")
        return tensor


class IRuntimeConfig(Bound):
    """How a context is made."""

    cuda_graph_strategy = Value()
    dynamic_shapes_kernel_specialization_strategy = Value()

    _strategy: Any
    _cache: Any

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def create_runtime_cache(self) -> Any | None:
        try:
            device = Cuda("a runtime cache was made").device()
        except DriverError:
            return None
        return self._world.new("IRuntimeCache", kernels=[], of=[self._world.version, *map(str, device)])

    def set_runtime_cache(self, cache: Any = None) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> Any:
        return self._cache


class IRuntimeCache(Bound):
    """The kernels that TensorRT-RTX has compiled."""

    _kernels: list[str]
    _of: list[str]

    def serialize(self) -> Any:
        return self._world.host_memory(json.dumps({"kernels": self._kernels, "of": self._of}).encode())

    def deserialize(self, blob: Any) -> bool:
        self._enter()
        try:
            found = json.loads(bytes(memoryview(blob)))
        except ValueError:
            return False
        if found["of"] != self._of:
            return False
        self._kernels[:] = found["kernels"]
        return True

    def reset(self) -> None:
        self._kernels.clear()


class EngineInspector(Bound):
    """Says what layers an engine has."""

    _plan: Plan

    def get_engine_information(self, format: Any) -> str:  # noqa: A002
        plan = self._plan
        if format.name != "JSON":
            return "\n".join(plan.layers)
        layers: list[Any] = list(plan.layers)
        if plan.detailed:
            layers = [
                {"Name": name, "LayerType": "kgen", "TacticName": f"kernel{'_sparse' * (name in plan.sparse)}_f32"}
                for name in plan.layers
            ]
        return json.dumps({"Layers": layers, "Bindings": [t.name for t in (*plan.inputs, *plan.outputs)]})


class IExecutionContext(Bound):
    """What runs an engine, one call at a time."""

    _core: Core
    _state: Context
    _cache: Any

    def __del__(self) -> None:
        if sys.is_finalizing() or os.getpid() != self._pid:
            return
        if self._state.running:
            UNDEFINED.append("a context was destroyed while it was running")
        self._core.contexts -= 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:  # noqa: ARG002
        self._enter()
        if profile_index:
            return self._fail("setOptimizationProfileAsync", f"there is no profile {profile_index}")
        if not self._core.plan.shares_profile and self._core.contexts > 1:
            return self._fail("setOptimizationProfileAsync", "profile 0 has been chosen by another IExecutionContext")
        self._state.has_profile = True
        self._state.shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self._enter()
        wanted, tensor = tuple(map(int, shape)), self._core.tensor(name)
        if tensor is None or tensor not in self._core.plan.inputs or len(wanted) != len(tensor.shape):
            return self._fail("setInputShape", f"{name} is no input of {len(wanted)} dimensions")
        if not self._state.has_profile:
            return self._fail("setInputShape", "no optimization profile has been chosen")
        least, _, most = tensor.profile
        if not all(low <= size <= high for low, size, high in zip(least, wanted, most, strict=True)):
            return self._fail("setInputShape", f"{wanted} does not satisfy any optimization profile: {least} to {most}")
        self._state.shapes[name] = wanted
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._state.shapes:
            return self._state.shapes[name]
        tensor = self._core.tensor(name)
        batch = next((shape[0] for shape in self._state.shapes.values()), -1)
        return tuple(batch if size == -1 else size for size in tensor.shape) if tensor else ()

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._enter()
        if self._core.tensor(name) is None:
            return self._fail("setTensorAddress", f"{name} is no tensor of the engine")
        self._state.addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._state.addresses.get(name, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._enter()
        if self._state.running:
            raise undefined("activation memory was taken from a context that was running")
        if memory % 256:
            raise undefined(f"activation memory at {memory:#x} is not aligned to 256 bytes")
        if size < self._core.activation_bytes:
            raise undefined(f"{size} bytes of activation memory, of {self._core.activation_bytes} that are needed")
        self._state.memory = memory

    @property
    def device_memory(self) -> int:
        return self._state.memory or 0

    @device_memory.setter
    def device_memory(self, memory: int) -> None:
        IExecutionContext.set_device_memory(self, memory, self._core.activation_bytes)  # its size nobody can check

    @property
    def engine(self) -> None:
        raise NotImplementedError("an engine is the caller's to keep")

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._enter()
        core, state = self._core, self._state
        for tensor in core.plan.inputs:
            if tensor.name not in state.shapes and -1 in tensor.shape:
                return self._fail("enqueueV3", f"the shape of {tensor.name} is not set")
        names = [tensor.name for tensor in (*core.plan.inputs, *core.plan.outputs)]
        if unset := [name for name in names if not state.addresses.get(name)]:
            return self._fail("enqueueV3", f"the address of {', '.join(unset)} is not set")
        if core.activation_bytes and state.memory is None:
            raise undefined("a context was run without activation memory")
        if self._cache is not None and repr(state.shapes) not in self._cache._kernels:
            self._cache._kernels.append(repr(state.shapes))  # compiled once for each shape
        call = Call(
            session=core.session,
            shapes={**state.fixed, **state.shapes},
            inputs={tensor.name: tensor.dtype for tensor in core.plan.inputs},
            outputs=tuple(tensor.name for tensor in core.plan.outputs),
            addresses=dict(state.addresses),
            memory=(state.memory or 0, core.activation_bytes),
        )
        try:
            core.check_current("a context was run")
            execute(call, state, stream=int(stream_handle), cuda=core.cuda, busy=self._world.busy)
        except DriverError as failure:
            return self._fail("enqueueV3", f"Cuda Runtime ({failure})")
        return True

    def _fail(self, function: str, why: str) -> bool:
        error = self._world.module.ILogger.ERROR
        self._core.logger.log(error, f"IExecutionContext::{function}: Error Code 3: API Usage Error ({why})")
        return False
