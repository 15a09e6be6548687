"""`SmartModel`: one bundle, all its paths warm, one of them answering."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from smart_runtime.bundle import Bundle
from smart_runtime.engines import AUTO, Engine, Scores, create_engine, resolve_engine
from smart_runtime.errors import ClosedError, PathError
from smart_runtime.inputs import Images, prepare
from smart_runtime.manifest import DENSE, Manifest
from smart_runtime.stats import Recorder, Stats


@dataclass(frozen=True)
class Result:
    """What one call gave.

    ``scores`` are float32 logits, (N, classes), the caller's own array; ``path`` made them, and it alone;
    ``latency_ms`` is the time of the whole call, checks and conversion included.
    """

    scores: Scores = field(repr=False)
    path: str
    latency_ms: float


@dataclass(frozen=True)
class _Active:
    """The path that answers; one value, so that a call reads a name and an engine that belong together."""

    name: str
    engine: Engine


class SmartModel:
    """An image classifier whose path can be changed in place; safe to use from several threads.

        with SmartModel.load("bundle/") as model:
            scores = model(frames)
            model.path = "robust"
            result = model.run(frames)

    Every call runs on the path that was active when it began, to its end; no call waits for a switch.
    """

    def __init__(self, bundle: Bundle, *, engines: Mapping[str, Engine], engine_name: str, path: str) -> None:
        """Use `load`; this takes engines that are ready, one a path."""
        self.bundle = bundle
        self.engine_name = engine_name
        self._spec = bundle.manifest.input
        self._all = {name: _Active(name, engine) for name, engine in engines.items()}
        self._active: _Active | None = self._all[path]
        self._recorder = Recorder(engines)
        self._lock = threading.Lock()  # orders switches and close; calls never take it

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        *,
        path: str | None = None,
        engine: str = AUTO,
        threads: int | None = None,
        trust: str | os.PathLike[str] | None = None,
    ) -> SmartModel:
        """Load every path of the bundle in the directory ``bundle``, checked and warm.

        Args:
            bundle: The directory.
            path: The path that answers first; None for the manifest's default path.
            engine: An engine's name; ``auto`` takes the best one of this device.
            threads: Threads that one call may use; None leaves it to the engine.
            trust: A file with an Ed25519 public key (PEM): only a bundle signed with its private half is loaded.

        Raises:
            BundleError: Not a bundle, or any byte of it was changed, added or lost.
            PathError: The bundle has no such path.
            EngineError: No such engine, or it refuses a graph.
            MissingExtraError: The engine's library is not installed.
            OSError: The system cannot read a file.
        """
        engine_name = resolve_engine(engine)
        opened = Bundle.open(bundle, trust=trust)
        manifest = opened.manifest
        first = _check_path(manifest.default_path if path is None else path, manifest)
        # What is loaded is checked as it is read; the rest (the dense baseline) is checked here and never kept.
        opened.verify(skip={name for graph in manifest.paths.values() for name in graph.files})
        image = np.zeros((1, *manifest.input.shape), dtype=np.float32)
        with ExitStack() as undo:
            engines: dict[str, Engine] = {}
            for name in manifest.paths:
                engines[name] = create_engine(
                    engine_name,
                    opened.graph_bytes(name),
                    inputs=manifest.input,
                    outputs=manifest.output,
                    threads=threads,
                )
                undo.callback(engines[name].close)
            # The first run allocates; after it a switch costs nothing. Only once the last engine is made: ONNX Runtime
            # copies the weights while it makes one, malloc keeps a part of the room, and the runs then fit into it
            # (two paths of ResNet-50: 167 MB instead of 177).
            for made in engines.values():
                made.run(image)
            undo.pop_all()
        return cls(opened, engines=engines, engine_name=engine_name, path=first)

    def __call__(self, images: Images) -> Scores:
        """Return the scores of ``images``; `run` says the path and the latency too.

        Args:
            images: float32 (N, channels, height, width) in [0, 1], or uint8 (N, height, width, channels); N at least 1.

        Returns:
            float32 logits, (N, classes); the array is the caller's own.

        Raises:
            InputError: Another type, dtype, shape or range, or NaN.
            EngineError: The engine failed.
            ClosedError: The model was closed.
        """
        return self.run(images).scores

    def run(self, images: Images) -> Result:
        """Return scores with the path that made them and the latency; arguments and errors are those of a call."""
        start_ns = time.perf_counter_ns()
        active = self._active  # read once: the name and the engine of this call
        if active is None:
            raise _closed()
        try:
            batch = prepare(images, self._spec)
            scores = active.engine.run(batch)
        except BaseException:  # whatever it was, it is counted and goes on to the caller
            self._recorder.error(active.name)
            raise
        latency_ns = time.perf_counter_ns() - start_ns
        self._recorder.call(active.name, images=len(batch), latency_ns=latency_ns)
        return Result(scores, active.name, latency_ns / 1e6)

    @property
    def path(self) -> str:
        """The path that answers the next call; assign another to switch."""
        active = self._active
        if active is None:
            raise _closed()
        return active.name

    @path.setter
    def path(self, name: str) -> None:
        self.switch(name)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths to choose from."""
        return tuple(self.manifest.paths)

    def switch(self, path: str, reason: str = "") -> None:
        """Let ``path`` answer every call that begins from now on; calls in flight finish on their path.

        ``reason`` is kept in `stats`. Switching to the path that is active already changes and counts nothing.

        Raises:
            PathError: The bundle has no such path; the old one goes on answering.
            ClosedError: The model was closed.
        """
        with self._lock:
            if self._active is None:
                raise _closed()
            name = _check_path(path, self.manifest)
            if name == self._active.name:
                return
            self._active = self._all[name]
            self._recorder.switch(reason)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the scores."""
        return self.bundle.manifest.class_names

    @property
    def stats(self) -> Stats:
        """What the model did so far, a snapshot; stays readable after `close`."""
        return self._recorder.snapshot()

    def close(self) -> None:
        """Give back the engines; calls in flight finish, later ones raise ClosedError. May be called again."""
        # The engines are let go, not closed: a call that has read its engine but not entered it yet must still finish,
        # and the last one that holds an engine frees it.
        with self._lock:
            self._active = None
            self._all = {}

    def __enter__(self) -> SmartModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_path(path: str, manifest: Manifest) -> str:
    is_text = isinstance(path, str)  # a list cannot be looked up, and an array is equal in its own way
    if is_text and path in manifest.paths:
        return path
    names = ", ".join(repr(name) for name in manifest.paths)
    is_dense = is_text and path == DENSE
    remedy = "the dense baseline is for smart-bench only" if is_dense else "`smart-run info` describes them"
    raise PathError(f"expected one of the paths {names}, got {path!r}; {remedy}")


def _closed() -> ClosedError:
    return ClosedError("expected an open model, got a closed one; load the bundle again")
