"""What runs a graph on this device, by name; nothing is imported here that an engine needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from smart_common.errors import MissingExtraError
from smart_devices.engines import engine_status
from smart_runtime.bundle.bundle import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import onnxruntime
from smart_runtime.engines.engine import Batch, Engine, Scores
from smart_runtime.errors import EngineError

__all__ = [
    "AUTO",
    "ENGINES",
    "REFERENCE_ENGINE",
    "Batch",
    "Engine",
    "Scores",
    "create_engine",
    "open_engine",
    "resolve_engine",
]

AUTO = "auto"
"""Not an engine: asks for the best one that this device has."""

REFERENCE_ENGINE = onnxruntime.CPU
"""The engine that proves: graphs are verified, judged and evaluated with it, whatever serves. It computes in fp32."""

ENGINES: Mapping[str, Callable[..., Engine]] = MappingProxyType({onnxruntime.CPU: onnxruntime.create_cpu_engine})
"""Every engine by its name, best first; each factory takes what `create_engine` takes."""


_FROM_FILE: Mapping[str, Callable[..., Engine]] = MappingProxyType({onnxruntime.CPU: onnxruntime.open_cpu_engine})


def resolve_engine(name: str) -> str:
    """Return the engine that ``name`` means on this device: itself, or the best one for ``auto``.

    Raises:
        EngineError: No engine is called that.
        MissingExtraError: It cannot run here; for ``auto``, none can.
    """
    if name != AUTO and name not in ENGINES:
        names = ", ".join(repr(known) for known in (AUTO, *ENGINES))
        raise EngineError(f"expected an engine among {names}, got {name!r}; {AUTO!r} takes the best one of this device")
    candidates = [engine_status(known) for known in (ENGINES if name == AUTO else [name])]
    for status in candidates:
        if status.available:
            return status.name
    reasons = "; ".join(f"{status.name}: {status.reason}, {status.install}" for status in candidates)
    raise MissingExtraError(f"expected an engine that can run on this device, got none ({reasons})")


def create_engine(
    name: str, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec, threads: int | None = None
) -> Engine:
    """Return an engine that runs ``graph``; ``graph`` may be dropped afterwards.

    Args:
        name: An engine of `ENGINES`, or ``auto``.
        graph: The graph's checked bytes.
        inputs: What the graph must take.
        outputs: What the graph must give.
        threads: Threads that one run may use; None leaves it to the engine (ONNX Runtime: one a physical core). At
            most one for each core of this process: more would wait for one another, thousands for minutes.

    Raises:
        EngineError: No such engine, or so many threads, or the engine refuses the graph, or the graph takes or gives
            something else.
        MissingExtraError: The engine's library is not installed.
    """
    _check_threads(threads)
    return ENGINES[resolve_engine(name)](graph, inputs=inputs, outputs=outputs, threads=threads)


def open_engine(
    name: str, path: Path, *, shape: tuple[int, int, int], batch: int, threads: int | None = None
) -> Engine:
    """Return an engine that runs the ONNX file ``path`` of the user's own, after one run of zeros.

    Unlike a bundle's graph it is opened by its path, so its external data is looked for beside it. Its names are its
    own; of several outputs the first counts.

    Args:
        name: An engine of `ENGINES`, or ``auto``.
        path: An ONNX classifier with one float32 input.
        shape: Channels, height and width that the input must take, as fixed or as free sizes.
        batch: Images a run, which it must take too.
        threads: As in `create_engine`.

    Raises:
        EngineError: No such engine or file, or the engine refuses it, or it takes or gives something else.
        MissingExtraError: The engine's library is not installed.
    """
    _check_threads(threads)
    return _FROM_FILE[resolve_engine(name)](path, shape=shape, batch=batch, threads=threads)


def _check_threads(threads: int | None) -> None:
    if threads is None:
        return
    cores = len(os.sched_getaffinity(0))
    if not 1 <= threads <= cores:
        raise EngineError(
            f"expected 1 to {cores} threads, as many as there are cores for this process, got {threads}; leave it out "
            f"to let the engine choose"
        )
