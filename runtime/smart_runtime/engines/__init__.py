"""What runs a graph on this device, by name; nothing is imported here that an engine needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from smart_common.errors import MissingExtraError, alternatives
from smart_common.lazy import load
from smart_devices import engine_rows
from smart_devices.engine_rows import AUTO, REFERENCE_ENGINE, EngineStatus, engine_info, engine_names
from smart_devices.engines import engine_status, has_library
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.engine import (
    DEFAULT_OPTIONS,
    Batch,
    BatchRange,
    DeviceTimes,
    Engine,
    EngineOptions,
    Prove,
    Scores,
    without_proof,
)
from smart_runtime.errors import ClosedError, EngineError

if TYPE_CHECKING:
    from smart_devices.gpu_engines import Surroundings

__all__ = [
    "AUTO",
    "REFERENCE_ENGINE",
    "Batch",
    "BatchRange",
    "Choice",
    "DeviceTimes",
    "Engine",
    "EngineOptions",
    "Prove",
    "Scores",
    "check_available",
    "choose_engine",
    "class_of",
    "create_engine",
    "open_engine",
    "resolve_engine",
]


@dataclass(frozen=True)
class Choice:
    """The engine that runs a bundle, and a sentence for each better one that ``auto`` passed over, with its remedy."""

    engine: str
    passed_over: tuple[str, ...] = ()


def resolve_engine(name: str) -> str:
    """Return the engine that ``name`` means on this device: itself, or for ``auto`` the best that runs any bundle now.

    Raises:
        EngineError: No engine is called that.
        MissingExtraError: It cannot run here; for ``auto``, none can.
    """
    return choose_engine(name).engine


def choose_engine(name: str, bundle: Bundle | None = None, *, options: EngineOptions = DEFAULT_OPTIONS) -> Choice:
    """Return the engine that ``name`` means for ``bundle``, or for any one; errors are those of `resolve_engine`.

    ``auto`` never means an engine that has to build for minutes first. A name means itself and nothing else.
    """
    known = engine_names()
    if name != AUTO:
        if name not in known:
            raise _unknown(name, known)
        check_available(name)
        return Choice(name)
    passed_over: list[str] = []
    around: Surroundings | None = None
    for candidate in known:
        info = engine_info(candidate)
        if not has_library(info):
            continue
        if info.library and around is None:  # it looks at the whole machine: once for all
            around = load("smart_devices.gpu_engines:survey")()
        if engine_status(candidate, around=around).available:
            why_not = _why_not(candidate, bundle, options)
            if why_not is None:
                return Choice(candidate, tuple(passed_over))
            passed_over.append(why_not)
    refused = [_refusal(status) for status in map(partial(engine_status, around=around), known) if not status.available]
    raise MissingExtraError(f"no engine can run on this device ({'; '.join(refused + passed_over)})")


def check_available(name: str) -> None:
    """Raise MissingExtraError, with the remedy, if the engine ``name`` cannot run here."""
    status = engine_status(name)
    if not status.available:
        raise MissingExtraError(f"this device cannot run {_refusal(status)}")


def _unknown(name: str, known: Sequence[str]) -> EngineError:
    if any(info.name == name for info in engine_rows.ENGINES):
        return EngineError(f"{name} builds engines and runs none; choose among {', '.join((AUTO, *known))}")
    return EngineError(f"unknown engine {alternatives(name, [AUTO, *known])}")


def _refusal(status: EngineStatus) -> str:
    return f"{status.name}: {', '.join(filter(None, (status.reason, status.install)))}"


def _why_not(candidate: str, bundle: Bundle | None, options: EngineOptions) -> str | None:
    try:
        return class_of(candidate).why_not_now(bundle, options)
    except (ClosedError, EngineError, MissingExtraError) as error:  # it is installed, and does not load
        return f"{candidate}: {error}"


def create_engine(
    engine: str | Choice,
    graph: GraphBytes,
    *,
    inputs: InputSpec,
    outputs: OutputSpec,
    options: EngineOptions = DEFAULT_OPTIONS,
    prove: Prove = without_proof,
) -> Engine:
    """Return an engine that runs ``graph``; ``graph`` may be dropped afterwards.

    Args:
        engine: An engine's name, or ``auto``; or what `choose_engine` returned, which is not looked at again.
        graph: The graph's checked bytes.
        inputs: What the graph must take.
        outputs: What the graph must give.
        options: How it is to run.
        prove: Called, by an engine that compiles graphs for this device, where what it has compiled is not proved yet.

    Raises:
        EngineError: No such engine, or the engine refuses the graph, or the graph takes or gives something else;
            DisprovedError, ``prove`` says that it computes something else.
        MissingExtraError: The engine's library is not installed.
    """
    name = engine.engine if isinstance(engine, Choice) else resolve_engine(engine)
    return class_of(name).create_proved(graph, inputs=inputs, outputs=outputs, options=options, prove=prove)


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
    return class_of(resolve_engine(name)).open_file(path, shape=shape, batch=batch, options=options)


def class_of(name: str) -> type[Engine]:
    """Return what makes engines of the name; its library is not imported."""
    place = engine_info(name).factory
    assert place is not None, "only names of engines come here"  # for the type checker
    factory: type[Engine] = load(place)
    return factory
