"""A path whose engine is up, the calls inside of it and their results, and what makes such paths from a bundle."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from smart_runtime.bundle.bundle import Bundle, HeldGraph
from smart_runtime.bundle.exchange import check_not_exchanged, despite_exchange, identity
from smart_runtime.bundle.manifest import InputSpec
from smart_runtime.bundle.signatures import PublicKey
from smart_runtime.classify import probabilities
from smart_runtime.engines import AUTO, Batch, Engine, EngineOptions, Scores, choose_engine, class_of, create_engine
from smart_runtime.errors import BundleError, OutOfMemoryError
from smart_runtime.inputs import Images, NumpyImages, prepare
from smart_runtime.memory import give_back_freed, resident_bytes
from smart_runtime.outputs import check_scores

if TYPE_CHECKING:
    from smart_runtime.engines.cuda.gpu_images import GpuImages

POLL_SECONDS = 0.001
"""Between two looks at what another thread is to do."""

# Of the largest score. Engines take other kernels, some of fewer bits, for other batches; int8 tolerances reach 0.5.
_LEAST_TOLERANCE, _MOST_TOLERANCE = 0.02, 0.1

_log = logging.getLogger(__name__)


class Call:
    """One call, from its beginning to its end; ``loaded`` is the path that it entered."""

    __slots__ = ("loaded",)

    def __init__(self) -> None:
        self.loaded: Served | None = None


@dataclass(frozen=True)
class Result:
    """What one call gave.

    ``scores`` are float32 logits, (N, classes), of a mix the logarithms of its probabilities; the array is the caller's
    own. ``path`` is the path or the mix that made them; ``latency_ms`` is the time of the whole call, checks and
    conversion included; ``temperature`` is what the export fitted for that path, 1 where it fitted none and for a mix.
    """

    scores: Scores
    path: str
    latency_ms: float
    temperature: float = 1.0

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """What the scores say of each class, calibrated: softmax(scores / temperature), float64 (N, classes)."""
        return probabilities(self.scores, temperature=self.temperature)

    def __repr__(self) -> str:
        return f"Result(scores of shape {self.scores.shape}, path {self.path!r}, {self.latency_ms:.3g} ms)"


class Served(ABC):
    """What answers calls, and the calls inside of it; what it runs on is closed when the last call has left.

    No lock stands before a call: adding to a set and taking from it are atomic, and whoever retires it looks at the
    set afterwards, whoever enters looks at ``retired`` afterwards, so that one of the two sees the other.
    """

    temperature = 1.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: set[Call] = set()
        self.retired = False

    @abstractmethod
    def scores_of(self, images: Images) -> Scores:
        """Return the scores of what a user passes, checked as far as it can be; see `SmartModel.run`."""

    @abstractmethod
    def close_if_idle(self) -> None:
        """Close what no call can need any more; whoever takes a call out of ``calls`` calls this."""

    def enter(self, call: Call) -> bool:
        """Let ``call`` in, which must leave again; False, and it is not in, if the path is retired."""
        call.loaded = self  # first: whatever happens from here on, the call knows what to leave
        self.calls.add(call)
        if self.retired:
            self.calls.discard(call)
            self.close_if_idle()
            return False
        return True

    def retire(self) -> None:
        """Let no more calls in; those that are in finish, and the last one closes what they ran on."""
        self.retired = True
        self.close_if_idle()

    def drain(self) -> None:
        """Retire it and wait until its last call has left and what it ran on is closed."""
        self.retire()
        while self.calls:  # polled: an exception sent to a thread may come between its leaving and its saying so
            time.sleep(POLL_SECONDS)
        self.close_if_idle()


class LoadedPath(Served):
    """One path of one bundle with its engine up.

    ``shared_by`` are the calls of everything else that runs its engine, a set each: no call enters them after
    whatever they belong to is retired, which is before this path is.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        spec: InputSpec,
        classes: int,
        resident_bytes: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(name)
        self.engine = engine
        self.spec = spec
        self.classes = classes
        self.resident_bytes = resident_bytes
        self.temperature = temperature
        self.shared_by: tuple[set[Call], ...] = ()

    def scores_of(self, images: Images) -> Scores:
        """See `Served.scores_of`."""
        return self.run(prepared(images, self.spec))

    def run(self, batch: Batch | GpuImages) -> Scores:
        """Return the scores of a batch as `Engine.run` does; EngineError, too, where its graph gives anything else."""
        if isinstance(batch, np.ndarray):
            scores, count = self.engine.run(batch), len(batch)
        else:
            scores, count = self.engine.run_gpu_images(batch), batch.count
        check_scores(scores, images=count, classes=self.classes, name=self.name)
        return scores

    def close_if_idle(self) -> None:
        """Close the engine of a retired path that no call is in, neither by its own name nor by another."""
        if self.retired and not self.calls and not any(self.shared_by):
            try:
                self.engine.close()
            except Exception:  # a result, a reload or another path's engine must not be lost over it
                _log.exception("the engine of the path %r did not close", self.name)


def prepared(images: Images, spec: InputSpec) -> Batch | GpuImages:
    """Return what a user passes as an engine takes it, checked as far as it can be; see `SmartModel.run`."""
    on_gpu = None if isinstance(images, np.ndarray) else _on_gpu(images, spec)
    return prepare(cast("NumpyImages", images), spec) if on_gpu is None else on_gpu


def _on_gpu(images: Images, spec: InputSpec) -> GpuImages | None:
    from smart_runtime.engines.cuda.gpu_images import gpu_images  # noqa: PLC0415  # only for who has such images

    return gpu_images(images, spec=spec)


class Loader:
    """Makes the paths of one bundle, each checked and warm.

    ``choice`` is the engine that it makes them with. The bundle's files stay open until `close`: on demand a path is
    loaded long after the directory may have been replaced or removed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        trust: PublicKey | None,
        engine: str,
        options: EngineOptions,
    ) -> None:
        """Open the bundle in the directory ``path``; arguments and errors are those of `SmartModel.load`.

        Once this has returned, another bundle may take the directory's place.
        """
        self._options = options
        self._unproved: frozenset[str] = frozenset()
        named = None if engine == AUTO else choose_engine(engine)  # first: without it, nothing of the bundle matters
        self.bundle, self._held, self._files = despite_exchange(Path(path), partial(_opened, path, trust=trust))
        try:
            self.choice = named or choose_engine(AUTO, self.bundle, options=options)
            self._measured = class_of(self.choice.engine).measured_bytes(self.bundle, options)
        except BaseException:
            self._files.close()
            raise

    @property
    def file_bytes(self) -> Mapping[str, int]:
        """The bytes of each path's files: what its engine needs at least."""
        return {name: held.bytes for name, held in self._held.items()}

    @property
    def costs(self) -> Mapping[str, int]:
        """What each path counts against a budget, in bytes."""
        return {name: max(size, self._measured.get(name, 0)) for name, size in self.file_bytes.items()}

    def verify_all_but(self, paths: Collection[str]) -> None:
        """Check the files of all paths but ``paths``, which `load` checks as it reads them."""
        for name, held in self._held.items():
            if name not in paths:
                held.verify()

    def load(self, path: str) -> LoadedPath:
        """Return the path with its engine up, after a first run, which is when engines allocate.

        Raises:
            BundleError: A byte of its files was changed, or an image's scores depend on the batch it comes in.
            EngineError: The engine refuses the graph, or the graph gives no scores; OutOfMemoryError, there is no room
                for it.
        """
        manifest = self.bundle.manifest
        before = resident_bytes()
        try:
            engine = create_engine(
                self.choice,
                self._held[path].read(),
                inputs=manifest.input,
                outputs=manifest.output,
                options=self._options,
                prove=partial(self._prove, path),
            )
        except MemoryError as error:  # of the bytes; the engine's own shortage comes in our words
            raise OutOfMemoryError(
                f"too little memory to read the files of the path {path!r}; "
                "free some, or load fewer paths with memory='on-demand'"
            ) from error
        try:
            loaded = LoadedPath(
                path,
                engine,
                spec=manifest.input,
                classes=manifest.output.classes,
                temperature=manifest.paths[path].temperature,
            )
            self._try(loaded)
            give_back_freed()
            after = resident_bytes()
            loaded.resident_bytes = None if before is None or after is None else max(0, after - before)
        except BaseException:
            engine.close()
            raise
        return loaded

    def _prove(self, path: str, engine: Engine) -> Mapping[str, Any]:
        """Hold what an engine compiled of ``path`` against the export's scores: a `Prove` of one path."""
        from smart_runtime.proofs import facts_of, proofs_by_export  # noqa: PLC0415  # only for who compiles

        proofs = proofs_by_export(engine, self.bundle, path, options=self._options, read=self._held[path].read_file)
        if not proofs:
            self._unproved |= {path}
        return facts_of(path, proofs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about how the paths were loaded, a sentence each."""
        if not self._unproved:
            return self.choice.passed_over
        names = " and ".join(sorted(self._unproved))
        return (
            *self.choice.passed_over,
            f"nothing proves that {self.choice.engine} computes {names} on this device as it was exported: the bundle "
            "has no scores of its own; export it again, or let `smart-run install` compare with ONNX Runtime on the "
            "CPU (pip install 'smart-edge[cpu]')",
        )

    def _try(self, loaded: LoadedPath) -> None:
        """Run an image alone and beside another one: its scores must be the same."""
        manifest = self.bundle.manifest
        pair = np.zeros((2, *manifest.input.shape), dtype=np.float32)
        pair[1] = np.linspace(0, 1, pair[1].size, dtype=np.float32).reshape(pair[1].shape)
        alone = loaded.run(pair[:1])
        both = loaded.run(pair)
        allowed = min(max(manifest.paths[loaded.name].tolerance or 0.0, _LEAST_TOLERANCE), _MOST_TOLERANCE)
        if np.abs(both[:1] - alone).max() > allowed * np.abs(both).max():
            raise BundleError(
                f"in the path {loaded.name!r} an image's scores depend on the batch it comes in: alone they are others "
                f"than beside a second image; export it again, which says what in the network does it"
            )

    def close(self) -> None:
        """Give back the open files; may be called again."""
        self._files.close()


def _opened(path: str | os.PathLike[str], *, trust: PublicKey | None) -> tuple[Bundle, dict[str, HeldGraph], ExitStack]:
    """Return a bundle, its paths' files held open, and what closes them; every other file of it has been checked."""
    was = identity(Path(path))
    bundle = Bundle.open(path, trust=trust)
    graphs = bundle.manifest.paths
    with ExitStack() as undo:
        held = {name: undo.enter_context(bundle.hold(name)) for name in graphs}
        bundle.verify(skip={name for graph in graphs.values() for name in graph.files})
        check_not_exchanged(bundle.root, was)  # the paths' files are checked later, by then for good or ill
        return bundle, held, undo.pop_all()
