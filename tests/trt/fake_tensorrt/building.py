"""What builds: the superset of all versions, which `bindings.fitted` cuts down to one."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trt.fake_tensorrt import graphs
from trt.fake_tensorrt.bindings import Bound, Value
from trt.fake_tensorrt.plan import Plan, Tensor, pack
from trt.fake_tensorrt.rules import Cuda, DriverError

_BUILD = "IBuilder::buildSerializedNetwork"
_PHASES = {"Cloning network graph": 3, "Computing profile costs": 2, "Building engine from subgraph": 1}


class Builder(Bound):
    """Makes networks, profiles and plans."""

    max_threads = Value(1)

    def __init__(self, logger: Any) -> None:
        if not isinstance(logger, self._world.module.ILogger):
            raise TypeError("__init__(): incompatible constructor arguments")
        self._pid = os.getpid()
        if not self._world.is_rtx:  # that one builds without a device too
            Cuda("a Builder was made")
        self._world.register(logger, "createInferBuilder")
        self._logger = logger

    def __del__(self) -> None:
        if hasattr(self, "_logger"):
            self._world.unregister()

    @property
    def logger(self) -> Any:
        return self._logger

    def create_network(self, flags: int = 0) -> Any:
        self._enter()
        known = self._world.module.NetworkDefinitionCreationFlag.__members__
        if flags >= 1 << len(known):
            self._say("ERROR", "IBuilder::createNetworkV2: Error Code 3: API Usage Error (unknown flags)")
            return None
        chosen = {name for name, value in known.items() if flags >> int(value) & 1}
        if "EXPLICIT_BATCH" not in chosen and self._world.version.startswith("8."):
            self._say("ERROR", "the implicit batch dimension is deprecated")
            return None
        strong = "STRONGLY_TYPED" in chosen or not hasattr(self._world.module.BuilderFlag, "FP16")
        return self._world.new("INetworkDefinition", builder=self, strong=strong, flags=flags, model=None)

    def create_builder_config(self) -> Any:
        self._enter()
        flags = {"TF32"}  # the library's own choice
        config = self._world.new(
            "IBuilderConfig", set=flags, features=set(), pools={}, profiles=[], cache=None, aims=[], builder=self
        )
        config.profiling_verbosity = self._world.module.ProfilingVerbosity.LAYER_NAMES_ONLY
        return config

    def create_optimization_profile(self) -> Any:
        self._enter()
        return self._world.new("IOptimizationProfile", shapes={})

    def build_serialized_network(self, network: Any, config: Any) -> Any | None:
        self._enter()
        try:
            plan = self._plan(network, config)
        except _RefusedError as refusal:
            self._say("ERROR", f"{_BUILD}: Error Code {refusal}")
            return None
        except DriverError as failure:
            self._say("ERROR", f"{_BUILD}: Error Code 1: Cuda Runtime ({failure})")
            return None
        return self._world.host_memory(pack(plan, self._world.name))

    def _plan(self, network: Any, config: Any) -> Plan:
        model = network._model
        if model is None or not model.graph.output:
            raise _RefusedError("4: API Usage Error (Network must have at least one output)")
        for precision in ("FP16", "INT8"):
            if network._strong and precision in config._set:
                raise _RefusedError(f"4: API Usage Error ({precision} is set for a strongly typed network)")
            if not network._strong and graphs.uses(model, precision) and precision not in config._set:
                raise _RefusedError(f"4: API Usage Error ({precision} is used but not configured in the builder)")
        inputs = tuple(_profiled(tensor, config._profiles) for tensor in graphs.tensors(model.graph.input))
        capabilities, multiprocessors = config._aimed()
        layers = graphs.layer_names(model)
        eligible = graphs.two_four_layers(model) if "SPARSE_WEIGHTS" in config._set else ()
        sparse = eligible[:-1]  # the last one is faster as it is, as some always are
        elements = sum(_elements(tensor.profile[2]) for tensor in inputs)
        activation_bytes = -(-(8 * elements + 1024 * len(layers)) // 256) * 256
        if config.get_memory_pool_limit(self._world.module.MemoryPoolType.WORKSPACE) < activation_bytes:
            raise _RefusedError(f"10: Internal Error (no implementation of {layers[0]} within the workspace limit)")
        with _phase(config, "Building engine", None, len(_PHASES)) as step:
            for number, (name, steps) in enumerate(_PHASES.items()):
                with _phase(config, name, "Building engine", steps) as inner:
                    for inside in range(steps):
                        inner(inside)
                step(number)
        if config._cache is not None:
            config._cache._entries.update(dict.fromkeys(layers, 1.0))
        if "SPARSE_WEIGHTS" in config._set and not self._world.is_rtx:
            self._say("INFO", _sparsity("Found", eligible, "eligible to use sparse tactics"))
            self._say("INFO", _sparsity("Chose", sparse, "using sparse tactics"))
        return Plan(
            version=self._world.version,
            capabilities=capabilities,
            multiprocessors=multiprocessors,
            inputs=inputs,
            outputs=_outputs(graphs.tensors(model.graph.output), inputs),
            layers=layers,
            eligible=eligible,
            sparse=sparse,
            detailed=config.profiling_verbosity == self._world.module.ProfilingVerbosity.DETAILED,
            activation_bytes=activation_bytes,
            shares_profile=not self._world.version.startswith("8.") or "PROFILE_SHARING_0806" in config._features,
            graph=model.SerializeToString(),
        )

    def _say(self, severity: str, text: str) -> None:
        self._logger.log(getattr(self._world.module.ILogger, severity), text)


class _RefusedError(Exception):
    pass


def _sparsity(verb: str, names: tuple[str, ...], what: str) -> str:
    return f"(Sparsity) {verb} {len(names)} layer(s) {what}: {', '.join(names)}"


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _profiled(tensor: Tensor, profiles: list[Any]) -> Tensor:
    shapes = profiles[0]._shapes.get(tensor.name) if profiles else None
    if shapes is None and -1 in tensor.shape:
        raise _RefusedError("4: API Usage Error (Network has dynamic or shape inputs, but no optimization profile)")
    shapes = shapes or (tensor.shape,) * 3
    fits = all(
        len(least) == len(tensor.shape) and low <= opt <= high and (fixed in {-1, low} and (fixed == -1 or low == high))
        for least in shapes
        for fixed, low, opt, high in zip(tensor.shape, *shapes, strict=True)
    )
    if not fits:
        raise _RefusedError(f"4: API Usage Error (the profile of {tensor.name} does not fit its shape)")
    fixed = shapes[0] == shapes[2]  # then no size varies, whatever the graph says
    return Tensor(tensor.name, tensor.dtype, shapes[0] if fixed else tensor.shape, shapes)


def _outputs(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs as the profile leaves them; what varies in a classifier is the batch alone."""
    batch = inputs[0].shape[0]
    return tuple(
        Tensor(tensor.name, tensor.dtype, tuple(batch if size == -1 else size for size in tensor.shape))
        for tensor in outputs
    )


@contextmanager
def _phase(config: Any, name: str, parent: str | None, steps: int) -> Iterator[Any]:
    monitor = config.progress_monitor if hasattr(config, "progress_monitor") else None

    def step(number: int) -> None:
        try:
            goes_on = monitor is None or monitor.step_complete(name, number)
        except Exception:
            traceback.print_exc()  # an exception of the user's cancels, as in the real one
            goes_on = False
        if not goes_on:
            raise _RefusedError("7: BuildCanceled (Build canceled by user)")

    if monitor is not None:
        monitor.phase_start(name, parent, steps)
    try:
        yield step
    finally:
        if monitor is not None:
            monitor.phase_finish(name)


class IOptimizationProfile(Bound):
    """The shapes that a plan is for."""

    _shapes: dict[str, tuple[tuple[int, ...], ...]]

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        self._enter()
        self._shapes[input] = tuple(tuple(map(int, shape)) for shape in (min, opt, max))

    def get_shape(self, input: str) -> list[tuple[int, ...]]:  # noqa: A002
        return list(self._shapes[input])


class IBuilderConfig(Bound):
    """How to build."""

    builder_optimization_level = Value(3, lambda _, level: min(max(int(level), 0), 5))
    profiling_verbosity = Value()
    progress_monitor = Value()
    max_aux_streams = Value(-1)
    avg_timing_iterations = Value(1)
    num_compute_capabilities = Value(0, lambda config, count: config._aim_at(count))

    _set: set[str]
    _features: set[str]
    _pools: dict[str, int]
    _profiles: list[Any]
    _aims: list[str]
    _cache: Any

    def set_flag(self, flag: Any) -> None:
        self._set.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._set.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self._set

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        (self._features.add if enable else self._features.discard)(feature.name)

    def get_preview_feature(self, feature: Any) -> bool:
        return feature.name in self._features

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool.name] = int(pool_size)

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools.get(pool.name, 1 << 40)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def _aim_at(self, count: int) -> int:
        object.__setattr__(self, "_aims", ["NONE"] * count)
        return count

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        if not 0 <= index < len(self._aims):
            return False
        self._aims[index] = compute_capability.name
        return True

    def get_compute_capability(self, index: int) -> Any:
        return getattr(self._world.module.ComputeCapability, self._aims[index])

    def _aimed(self) -> tuple[tuple[str, ...], int | None]:
        """Return the compute capabilities to build for, and the multiprocessors of the device that was asked."""
        if self._world.is_rtx and self._aims != ["CURRENT"]:
            names = self._aims or [n for n in self._world.module.ComputeCapability.__members__ if n.startswith("SM")]
            if not all(name.startswith("SM") for name in names):
                raise _RefusedError("3: API Usage Error (a compute capability is not set)")
            return tuple(f"{name[2:-1]}.{name[-1]}" for name in names), None
        if self._world.is_rtx and not Cuda.in_use():
            raise _RefusedError("1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)")
        capability, multiprocessors = Cuda("a plan was built for the current device").device()
        return (capability,), None if self._world.is_rtx else multiprocessors

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any | None:
        data = bytes(memoryview(serialized_timing_cache))
        try:
            found = json.loads(data) if data else {"entries": {}, "of": _here(self._world)}
        except (ValueError, DriverError):
            return None
        return self._world.new("ITimingCache", entries=found["entries"], of=found["of"])

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        try:
            if not ignore_mismatch and cache._of != _here(self._world):
                return False
        except DriverError:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any | None:
        return self._cache


def _here(world: Any) -> list[str]:
    """Return what a timing cache is good for: a version on a device; TensorRT-RTX times nothing."""
    return [world.version] if world.is_rtx else [world.version, *map(str, Cuda("a timing cache was made").device())]


class ITimingCache(Bound):
    """What layers took."""

    _entries: dict[str, float]
    _of: list[str]

    def serialize(self) -> Any:
        return self._world.host_memory(json.dumps({"entries": self._entries, "of": self._of}).encode())

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and input_cache._of != self._of:
            return False
        self._entries.update(input_cache._entries)
        return True

    def reset(self) -> bool:
        self._entries.clear()
        return True
