"""All checks of this device, one after the other, each with its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_args

from smart_common.errors import MissingExtraError, SmartError
from smart_devices.engine_rows import AUTO, engine_info, engine_names
from smart_devices.engines import engine_status
from smart_runtime.engines import resolve_engine
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.trt.library import Library, LibraryName, load_library
from smart_runtime.selfcheck import cuda_checks, model_checks
from smart_runtime.selfcheck.failure import CheckFailed
from smart_runtime.selfcheck.model_checks import Subject


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one check went.

    Attributes:
        part: What was checked: ``cuda``, a library, or an engine.
        check: The name of the check.
        passed: Whether it held.
        seconds: What it took.
        figures: What it measured, as plain values; None where it failed.
        error: Why it failed, None where it did not.
    """

    part: str
    check: str
    passed: bool
    seconds: float
    figures: Mapping[str, Any] | None
    error: str | None

    @property
    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def engines_to_check(name: str) -> tuple[str, ...]:
    """Return the engines that ``name`` means: itself, or for ``auto`` every one that runs on a GPU here.

    Raises:
        EngineError: No engine is called that.
        MissingExtraError: It cannot run here.
    """
    if name != AUTO:
        return (resolve_engine(name),)
    rows = [row for row in engine_names() if engine_info(row).part == "gpu"]
    return tuple(row for row in rows if engine_status(row).available)


def selftest(engines: Sequence[str], *, subject: Callable[[str], Subject] | None, device: int = 0) -> Iterator[Outcome]:
    """Run all checks and yield the outcome of each.

    Args:
        engines: From `engines_to_check`.
        subject: Takes an engine's name and returns what is checked with it; None for no bundle, so the driver and the
            libraries alone.
        device: The number of the GPU.

    Raises:
        MissingExtraError: There is no driver that answers, or no such device; nothing was checked.
        EngineError: The device refuses.
    """
    gpu = not engines or any(engine_info(name).part == "gpu" for name in engines)
    if gpu:
        Device.shared(device).check()
        for name, work in cuda_checks.CHECKS.items():
            yield _outcome("cuda", name, partial(work, device))
        for library in get_args(LibraryName):
            yield _outcome(library, "import", partial(library_facts, library))
    for engine in engines:
        if subject is None:
            continue
        checked = subject(engine)
        for name, check in model_checks.CHECKS.items():
            yield _outcome(engine, name, partial(check, checked))


def _outcome(part: str, name: str, work: Callable[[], Mapping[str, Any]]) -> Outcome:
    start = time.perf_counter()
    figures, error = None, None
    try:
        figures = work()
    except (CheckFailed, SmartError) as failure:
        error = str(failure)
    seconds = time.perf_counter() - start
    return Outcome(part=part, check=name, passed=error is None, seconds=seconds, figures=figures, error=error)


def library_facts(name: LibraryName) -> dict[str, Any]:
    """Return what the binding of a TensorRT has of what versions differ in; ``skipped`` where there is none."""
    try:
        library = load_library(name)
    except MissingExtraError as error:
        return {"skipped": str(error)}
    return {"version": library.version, "has": [what for what, there in _features(library).items() if there]}


def _features(library: Library) -> dict[str, bool]:
    module = library.module
    asked = {
        "ICudaEngine": (
            "device_memory_size_v2",
            "create_execution_context_without_device_memory",
            "create_runtime_config",
        ),
        "IExecutionContext": ("set_device_memory", "execute_async_v3", "update_device_memory_size_for_shapes"),
        "IBuilderConfig": (
            "progress_monitor",
            "set_compute_capability",
            "create_timing_cache",
        ),
        "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
        "BuilderFlag": ("FP16", "INT8", "TF32", "SPARSE_WEIGHTS"),
    }
    owners = {owner: getattr(module, owner, None) for owner in asked}
    return {f"{owner}.{name}": hasattr(owners[owner], name) for owner, names in asked.items() for name in names}
