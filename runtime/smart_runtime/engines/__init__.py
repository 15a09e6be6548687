"""What runs a graph on this device, by name; nothing is imported here that an engine needs."""

from __future__ import annotations

from pathlib import Path

from smart_common.errors import MissingExtraError, alternatives
from smart_common.lazy import load
from smart_devices import engine_rows
from smart_devices.engine_rows import AUTO, REFERENCE_ENGINE, engine_info, engine_names
from smart_devices.engines import engine_status, has_library
from smart_runtime.bundle.bundle import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.engine import (
    DEFAULT_OPTIONS,
    Batch,
    BatchRange,
    DeviceTimes,
    Engine,
    EngineOptions,
    Scores,
)
from smart_runtime.errors import EngineError

__all__ = [
    "AUTO",
    "REFERENCE_ENGINE",
    "Batch",
    "BatchRange",
    "DeviceTimes",
    "Engine",
    "EngineOptions",
    "Scores",
    "create_engine",
    "open_engine",
    "resolve_engine",
]


def resolve_engine(name: str) -> str:
    """Return the engine that ``name`` means on this device: itself, or the best one for ``auto``.

    Raises:
        EngineError: No engine is called that, or smart-edge cannot drive it yet.
        MissingExtraError: It cannot run here; for ``auto``, none can.
    """
    driven = engine_names(driven=True)
    if name != AUTO and name not in driven:
        if name in engine_names():
            raise EngineError(f"smart-edge cannot drive {name} yet; choose among {', '.join((AUTO, *driven))}")
        if any(info.name == name for info in engine_rows.ENGINES):
            raise EngineError(f"{name} builds engines and runs none; choose among {', '.join((AUTO, *driven))}")
        raise EngineError(f"unknown engine {alternatives(name, [AUTO, *driven])}")
    candidates = driven if name == AUTO else (name,)
    for candidate in candidates:
        if has_library(engine_info(candidate)) and engine_status(candidate).available:
            return candidate
    refused = []
    for candidate in candidates:
        status = engine_status(candidate)
        refused.append(f"{candidate}: {', '.join(filter(None, (status.reason, status.install)))}")
    raise MissingExtraError(f"no engine can run on this device ({'; '.join(refused)})")


def create_engine(
    name: str, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec, options: EngineOptions = DEFAULT_OPTIONS
) -> Engine:
    """Return an engine that runs ``graph``; ``graph`` may be dropped afterwards.

    Args:
        name: An engine's name, or ``auto``.
        graph: The graph's checked bytes.
        inputs: What the graph must take.
        outputs: What the graph must give.
        options: How it is to run.

    Raises:
        EngineError: No such engine, or the engine refuses the graph, or the graph takes or gives something else.
        MissingExtraError: The engine's library is not installed.
    """
    return _factory(name).create(graph, inputs=inputs, outputs=outputs, options=options)


def open_engine(
    name: str, path: Path, *, shape: tuple[int, int, int], batch: int, options: EngineOptions = DEFAULT_OPTIONS
) -> Engine:
    """Return an engine that runs the ONNX file ``path`` of the user's own, after one run of zeros.

    Unlike a bundle's graph it is opened by its path, so its external data is looked for beside it. Its names are its
    own; of several outputs the first counts.

    Args:
        name: An engine's name, or ``auto``.
        path: An ONNX classifier with one float32 input.
        shape: Channels, height and width that the input must take, as fixed or as free sizes.
        batch: Images a run, which it must take too.
        options: How it is to run.

    Raises:
        EngineError: No such engine or file, or the engine refuses it, or it takes or gives something else.
        MissingExtraError: The engine's library is not installed.
    """
    return _factory(name).open_file(path, shape=shape, batch=batch, options=options)


def _factory(name: str) -> type[Engine]:
    place = engine_info(resolve_engine(name)).factory
    assert place is not None, "resolve_engine returns what can be driven"  # for the type checker
    factory: type[Engine] = load(place)
    return factory
