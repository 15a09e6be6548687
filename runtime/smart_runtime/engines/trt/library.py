"""TensorRT 8.6 to 11 and TensorRT-RTX, imported, and everything in which their versions differ.

Most of what builds, loads and runs a graph has one name in all of them and is called as it is, through `Library.module`
and the objects that it makes. What differs stands here, and is told apart by what the binding has, never by a version
number. Facts are from NVIDIA's own binding wheels, recorded in ``tests/trt/api``; meanings from the docstrings in them.

Creating a ``Runtime`` or ``Builder`` where the driver does not answer ends in a segmentation fault, so a device is
retained (`smart_runtime.engines.cuda.device`) before any of either.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smart_common.errors import MissingExtraError, shortened
from smart_runtime.engines.trt.log import Log
from smart_runtime.errors import EngineError

LibraryName = Literal["tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "int8"]

ALIGNMENT = 256
"""What the address of activation memory must be a multiple of, in bytes (``IExecutionContext.device_memory``)."""

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_REMEDY = "`smart-devices doctor` says what this device lacks"


@dataclass(frozen=True)
class Library:
    """One imported TensorRT.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        module: Its Python module, for all that is the same in every version.
        version: Its full version, such as ``10.3.0``: a plan runs only with the one that built it.
    """

    name: LibraryName
    module: Any
    version: str

    @property
    def title(self) -> str:
        """What people call it, with its version: ``TensorRT 10.3.0``."""
        return f"{_TITLES[self.name]} {self.version}"

    def logger(self, on_line: Callable[[str, str], None] | None = None) -> Log:
        """Return a new log of what the library says from now on.

        Args:
            on_line: Called with the severity (``ERROR``, ``WARNING``, ``INFO``...) and the text of each message, on
                whatever thread speaks; it must not raise.
        """
        return Log(self.module, on_line)

    # What runs a plan.

    def runtime(self, log: Log) -> Any:
        """Return a ``Runtime``, which must outlive its engines; raises EngineError if the library cannot make one.

        A device is retained and its context current, or this is a segmentation fault.
        """
        return self._made(self.module.Runtime, log)

    def deserialize(self, runtime: Any, plan: bytes) -> Any | None:
        """Return the engine of a plan; None if the library refuses it, with the reason in the runtime's log.

        The engine must outlive its contexts. A plan is code that runs: only those that this user's own builds left in
        the private cache come here.
        """
        return runtime.deserialize_cuda_engine(plan)

    def new_context(self, engine: Any, *, stream: int, cache: Any | None = None) -> Any | None:
        """Return an execution context without activation memory; None if the library cannot make one (see the log).

        Args:
            engine: What `deserialize` returned; it outlives the context.
            stream: Where the context's first run will be: the library may copy something there before.
            cache: What `kernel_cache` returned for this engine, if anything; it outlives the context.
        """
        if cache is not None:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(self._user_managed)
            config.set_runtime_cache(cache)
            context = engine.create_execution_context(config)
        elif hasattr(self.module, "ExecutionContextAllocationStrategy"):
            context = engine.create_execution_context(self._user_managed)
        else:
            context = engine.create_execution_context_without_device_memory()
        # In 8.6 the first context of a plan has its profile and the others have none, shared or not: NVIDIA's trtexec
        # sets it on each, whatever the version.
        return context if context is not None and context.set_optimization_profile_async(0, stream) else None

    @property
    def _user_managed(self) -> Any:
        return self.module.ExecutionContextAllocationStrategy.USER_MANAGED

    def kernel_cache(self, engine: Any, saved: bytes = b"") -> Any | None:
        """Return what keeps the kernels that TensorRT-RTX compiles on the device; None where nothing is compiled there.

        Its ``serialize()`` gives the bytes to save once contexts have run.

        Args:
            engine: Whose kernels.
            saved: What was saved before; what does not fit this device or version is ignored by the library.
        """
        if not hasattr(engine, "create_runtime_config"):
            return None
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return None
        cache = config.create_runtime_cache()
        if cache is not None and saved:
            cache.deserialize(saved)
        return cache

    def activation_bytes(self, engine: Any) -> int:
        """Return what each context of ``engine`` needs of activation memory, in bytes; it may be 0."""
        if hasattr(engine, "device_memory_size_v2"):
            return int(engine.device_memory_size_v2)
        return int(engine.device_memory_size)

    def set_activation_memory(self, context: Any, address: int, bytes: int) -> None:  # noqa: A002  # as elsewhere here
        """Give a context its activation memory, which no other running context may use.

        Args:
            context: One that no call is using.
            address: Device memory, a multiple of ``ALIGNMENT``; the caller keeps it until the context is gone.
            bytes: How much lies there, at least `activation_bytes`.
        """
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, bytes)
        else:
            context.device_memory = address

    # What builds one.

    def builder(self, log: Log) -> Any:
        """Return a ``Builder``; raises EngineError if the library cannot make one.

        For TensorRT, and for the device's own compute capability, a device is retained and its context current.
        """
        return self._made(self.module.Builder, log)

    def _made(self, kind: Any, log: Log) -> Any:
        try:
            return kind(log.trt)
        except TypeError as error:  # pybind11's, for a constructor that returned nothing
            raise EngineError(f"{self.title} cannot start on this device: {log.last_error}; {_REMEDY}") from error

    def network(self, builder: Any) -> Any:
        """Return an empty network with explicit batch sizes whose layers compute in the precision of the graph.

        TensorRT 8.6 has no strong typing: there the precision is a matter of flags, which `configure` sets.
        """
        known = self.module.NetworkDefinitionCreationFlag
        wanted = [getattr(known, name) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, name)]
        return builder.create_network(sum(1 << int(flag) for flag in wanted))

    def parse_errors(self, parser: Any) -> list[str]:
        """Return what a parser has against a graph, each as ``Operator (node): reason``, without repetitions."""
        found = (_parse_error(parser.get_error(number)) for number in range(parser.num_errors))
        return list(dict.fromkeys(found))

    def capabilities(self) -> dict[str, Any]:
        """Return the library's constants for the compute capabilities it builds for, lowest first.

        Empty for TensorRT, which builds for the device that it is on.
        """
        known = getattr(self.module, "ComputeCapability", None)
        members = {} if known is None else known.__members__
        found = {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}
        return dict(sorted(found.items(), key=lambda item: tuple(map(int, item[0].split(".")))))

    def configure(
        self,
        config: Any,
        *,
        precision: Precision,
        tf32: bool,
        sparse_weights: bool,
        workspace_bytes: int | None,
        level: int,
        capabilities: Sequence[str] | None = None,
    ) -> None:
        """Set up a build.

        Args:
            config: A new ``IBuilderConfig``.
            precision: Of the graph.
            tf32: Whether fp32 may be rounded to TF32. The library does so unless told otherwise.
            sparse_weights: Whether to look for 2:4 weights.
            workspace_bytes: What a layer may use of the device's memory; None for the library's own limit, all of it.
            level: How hard to try, 0 to 5.
            capabilities: Compute capabilities that the plan is for, as ``8.9``; None for the device's own. TensorRT-RTX
                only.

        Raises:
            EngineError: The library does not build for one of the capabilities.
        """
        flags = self.module.BuilderFlag
        config.builder_optimization_level = level
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED  # the inspector names layers and tactics
        if workspace_bytes is not None:
            config.set_memory_pool_limit(self.module.MemoryPoolType.WORKSPACE, workspace_bytes)
        (config.set_flag if tf32 else config.clear_flag)(flags.TF32)
        if sparse_weights:
            config.set_flag(flags.SPARSE_WEIGHTS)
        # Without strong typing a precision has to be allowed; what an int8 graph leaves in fp32 stays so, as judged.
        if precision != "fp32" and not hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
            config.set_flag(flags.FP16 if precision == "fp16" else flags.INT8)
        # Every lane has a context, and in 8.6 the contexts of a plan share its one profile only if that is asked for.
        preview: Any = getattr(self.module, "PreviewFeature", None)
        if hasattr(preview, "PROFILE_SHARING_0806"):
            config.set_preview_feature(preview.PROFILE_SHARING_0806, True)
        if hasattr(config, "set_compute_capability"):
            self._aim(config, capabilities)
        elif capabilities is not None:
            raise EngineError(f"{self.title} builds for the device that it is on; leave out the compute capabilities")

    def _aim(self, config: Any, capabilities: Sequence[str] | None) -> None:
        known = self.capabilities()
        for name in capabilities or ():
            if name not in known:
                raise EngineError(
                    f"{self.title} does not build for compute capability {name!a:.40}; choose among {', '.join(known)}"
                )
        wanted = [self.module.ComputeCapability.CURRENT] if capabilities is None else [known[n] for n in capabilities]
        config.num_compute_capabilities = len(wanted)
        for place, value in enumerate(wanted):
            config.set_compute_capability(value, place)

    def use_timing_cache(self, config: Any, saved: bytes) -> Any | None:
        """Let a build reuse and collect what layers took on this device; None for TensorRT-RTX, which times nothing.

        Args:
            config: The build's.
            saved: What the cache of an earlier build was as bytes; empty for none. One that is damaged, or of another
                device or version, is passed over.

        Returns:
            The cache, which must outlive the build. Its ``serialize()`` gives the bytes to save; the library has
            ``combine()`` to merge two.
        """
        if hasattr(config, "set_compute_capability"):  # it builds for named devices, so there is nothing to time
            return None
        cache = config.create_timing_cache(saved)
        if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another device or version
            cache = config.create_timing_cache(b"")
            if cache is not None:
                config.set_timing_cache(cache, False)
        return cache

    def watch(
        self, config: Any, *, started: Callable[[str, str | None], None], finished: Callable[[str], None]
    ) -> Any | None:
        """Be told of a build's phases; None where the library tells nothing (8.6).

        Args:
            config: The build's.
            started: Called with the name of a phase and that of the one that it is part of; must not raise.
            finished: Called with the name of a phase; must not raise.

        Returns:
            What must outlive the build.
        """
        if not hasattr(config, "progress_monitor"):
            return None
        base: Any = self.module.IProgressMonitor

        class Monitor(base):  # type: ignore[misc]  # the library ships no types
            def __init__(self) -> None:
                base.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
                started(phase_name, parent_phase)

            def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
                return True  # go on: who wants no more of a build ends its process

            def phase_finish(self, phase_name: str) -> None:
                finished(phase_name)

        config.progress_monitor = monitor = Monitor()
        return monitor


def load_library(name: LibraryName) -> Library:
    """Import ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        MissingExtraError: It is not installed, does not load, or is older than TensorRT 8.6.
    """
    title = _TITLES[name]
    try:
        module: Any = importlib.import_module(_MODULES[name])
    except (ImportError, OSError) as error:  # not there, or the libraries behind it are not
        raise MissingExtraError(f"{title} cannot be imported: {shortened(str(error))}; {_REMEDY}") from error
    if not hasattr(module, "Runtime"):  # any folder of that name can be imported
        raise MissingExtraError(f"the Python module {_MODULES[name]} is not {title}'s; {_REMEDY}")
    version = str(module.__version__)
    if not hasattr(module.IBuilderConfig, "builder_optimization_level"):
        raise MissingExtraError(f"{title} {version} is too old; install 8.6 or newer")
    return Library(name=name, module=module, version=version)


def _parse_error(error: Any) -> str:
    """Return what the parser has against one node: its operator and name, or its number where that is all, and why."""
    node = f"node {error.node()}"
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    reason = error.desc()
    if reason == "false" or "Plugin not found" in reason:  # its words for that, by version
        reason = "it has no such operator"
    if not operator:
        return reason if error.node() < 0 else f"{node}: {reason}"
    return f"{operator} ({error.node_name() or node}): {reason}"
