"""`SmartModel`: one bundle, its paths ready, one of them answering."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType

from smart_runtime import forks
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import DENSE, Manifest
from smart_runtime.engines import AUTO, EngineOptions, Scores, resolve_engine
from smart_runtime.errors import BundleError, ClosedError, EngineError, OutOfMemoryError, PathError
from smart_runtime.inputs import Images, prepare
from smart_runtime.memory import (
    LOAD_PEAK,
    RESIDENT,
    MemoryReport,
    Mode,
    PathMemory,
    choose_mode,
    give_back_freed,
    has_room,
    release_frames,
    resident_bytes,
)
from smart_runtime.notes import log_notes, notes_on
from smart_runtime.serving import Call, LoadedPath, Loader
from smart_runtime.stats import Recorder, Stats

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.001


@dataclass(eq=False)
class _Scope:
    """A block of `SmartModel.using`; once it has ended, who still sees it looks to the block around it."""

    path: str
    outer: _Scope | None
    ended: bool = False


# The scopes of this thread or task, by the number of the model: a number is given out once, and a context that outlives
# its model keeps nothing of it.
_scopes: ContextVar[Mapping[int, _Scope] | None] = ContextVar("smart_runtime_scopes", default=None)
_numbers = itertools.count()


@dataclass(frozen=True)
class Result:
    """What one call gave.

    ``scores`` are float32 logits, (N, classes), the caller's own array; ``path`` made them, and it alone;
    ``latency_ms`` is the time of the whole call, checks and conversion included.
    """

    scores: Scores = field(repr=False)
    path: str
    latency_ms: float


class SmartModel:
    """An image classifier whose path can be changed in place; safe to use from any number of threads and tasks.

        with SmartModel.load("bundle/") as model:
            scores = model(frames)
            model.path = "robust"
            result = model.run(frames)

    Every call runs, to its end, on the path that was active when it began. Calls wait for no switch and no reload, with
    one exception: under a budget that has room for one path only, see `load`. `switch` and `path` may be used in a
    signal handler as long as all paths are resident.
    """

    def __init__(
        self,
        loader: Loader,
        loaded: Mapping[str, LoadedPath],
        *,
        path: str,
        engine_name: str,
        memory: Mode | int,
        mode: Mode,
        options: EngineOptions,
        trust: str | os.PathLike[str] | None = None,
    ) -> None:
        """Use `load`; this takes paths that are loaded, ``path`` among them."""
        self.engine_name = engine_name
        self._memory = memory
        self._options = options
        self._trust = trust
        self._number = next(_numbers)
        self._recorder = Recorder(loader.bundle.manifest.paths)
        # What a call reads, each in one go: a name and an engine that belong together.
        self._active: LoadedPath | None = loaded[path]
        self._loaded: Mapping[str, LoadedPath] = dict(loaded)  # replaced, never changed
        self._path = path
        self._loader = loader
        self._mode = mode
        self._pins: Counter[str] = Counter()  # the scopes of `using`, by path
        self._unusable = ""  # why nothing may be done any more
        self._lost = ""  # why no path is loaded, where one should be
        self._new_locks()
        forks.guard(self)
        log_notes(loader.bundle.manifest, engine_name=engine_name)

    def _new_locks(self) -> None:
        # Both are re-entrant for the sake of signal handlers, which interrupt a thread that may hold them.
        self._lock = threading.RLock()  # for the fields above, never held for long; calls do not take it
        self._changes = threading.RLock()  # orders what takes long: loading, reloading
        self._changing = False
        # False while calls must wait, since no path is loaded. A plain flag that is polled: an exception that is sent
        # to a thread, by Ctrl-C for one, can leave the lock inside of a threading.Event locked for good.
        self._settled = True

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        *,
        path: str | None = None,
        engine: str = AUTO,
        threads: int | None = None,
        options: EngineOptions | None = None,
        memory: Mode | int = RESIDENT,
        trust: str | os.PathLike[str] | None = None,
    ) -> SmartModel:
        """Load the bundle in the directory ``bundle``, every byte checked, its paths warm.

        Args:
            bundle: The directory.
            path: The path that answers first; None for the manifest's default path.
            engine: An engine's name; ``auto`` takes the best one of this device.
            threads: Threads that one call may use; None leaves it to the engine. Short for ``options`` with them.
            options: How the engine is to run, instead of ``threads``.
            memory: ``resident`` keeps all paths loaded. ``on-demand`` keeps one: a switch loads the other one while the
                old one answers, then drops the old one. A number is a budget in bytes for the paths' graphs and
                weights: resident if all fit, else on demand; and if not even two fit at a time, a switch drops the old
                path first, calls wait until the new one is up, and the old one comes back if that fails.
            trust: A file with an Ed25519 public key (PEM): only a bundle signed with its private half is loaded.

        Raises:
            BundleError: Not a bundle, or any byte of it was changed, added or lost; SignatureError, it is not signed
                with the key.
            PathError: The bundle has no such path.
            EngineError: No such engine, or both ``threads`` and ``options``, or it refuses a graph, or the budget is
                too small; OutOfMemoryError, there is not enough memory.
            MissingExtraError: The engine's library is not installed, or with ``trust`` cryptography.
            OSError: The system cannot read a file.
        """
        if threads is not None and options is not None:
            raise EngineError("threads and options cannot be combined: say EngineOptions(threads=...)")
        options = EngineOptions(threads=threads) if options is None else options
        engine_name = resolve_engine(engine)
        with ExitStack() as undo:
            loader = Loader.open(bundle, trust=trust, engine_name=engine_name, options=options)
            undo.callback(loader.close)
            manifest = loader.bundle.manifest
            first = _check_path(manifest.default_path if path is None else path, manifest)
            mode = choose_mode(memory, costs=loader.costs)
            wanted = tuple(manifest.paths) if mode == RESIDENT else (first,)
            loader.verify_all_but(wanted)
            loaded: dict[str, LoadedPath] = {}
            for name in wanted:
                loaded[name] = loader.load(name)
                undo.callback(loaded[name].retire)
            if mode == RESIDENT:
                loader.close()
            undo.pop_all()
        return cls(
            loader,
            loaded,
            path=first,
            engine_name=engine_name,
            memory=memory,
            mode=mode,
            options=options,
            trust=trust,
        )

    def __call__(self, images: Images) -> Scores:
        """Return the scores of ``images``; `run` says the path and the latency too.

        Args:
            images: float32 (N, channels, height, width) in [0, 1], or uint8 (N, height, width, channels); N at least 1.

        Returns:
            float32 logits, (N, classes); the array is the caller's own.

        Raises:
            InputError: Another type, dtype, shape or range, or NaN.
            EngineError: The engine failed.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
        """
        return self.run(images).scores

    def run(self, images: Images) -> Result:
        """Return scores with the path that made them and the latency; arguments and errors are those of a call."""
        start_ns = time.perf_counter_ns()
        call = Call()
        try:
            loaded = self._enter(call)
            try:
                batch = prepare(images, loaded.spec)
                scores = loaded.engine.run(batch)
            except BaseException:  # whatever it was, it is counted and goes on to the caller
                self._recorder.error(loaded.name)
                raise
        finally:
            # Nothing of Python's may come before the call has left: an exception that is sent to this thread, by Ctrl-C
            # for one, strikes where a function begins or has ended, and a call that never leaves keeps its engine.
            if call.loaded is not None:
                call.loaded.calls.discard(call)
                call.loaded.close_if_idle()
        latency_ns = time.perf_counter_ns() - start_ns
        self._recorder.call(loaded.name, images=len(batch), latency_ns=latency_ns)
        return Result(scores, loaded.name, latency_ns / 1e6)

    async def arun(self, images: Images) -> Result:
        """Do what `run` does in a thread of asyncio's pool, while the event loop goes on; `using` holds there too.

        A call that waits for a free thread takes the path that is active when it gets one. If the task is cancelled,
        the call goes on in its thread, to no one's use; do not change ``images`` before it has ended.
        """
        import asyncio  # noqa: PLC0415  # a fifth of the time of importing this package, and only tasks need it

        return await asyncio.to_thread(self.run, images)

    @property
    def path(self) -> str:
        """The path that answers the next call in this thread or task; assign another to switch."""
        self._check_usable()
        return self._scope() or self._path

    @path.setter
    def path(self, name: str) -> None:
        self.switch(name)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths to choose from."""
        return tuple(self.manifest.paths)

    def switch(self, path: str, reason: str = "") -> None:
        """Let ``path`` answer every call that begins after this returns; calls in flight finish on their path.

        ``reason`` is kept in `stats`. Switching to the path that is active already changes and counts nothing. Calls
        inside of `using` stay with their scope's path.

        Raises:
            PathError: The bundle has no such path; the old one goes on answering.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
            BundleError, EngineError, OSError: On demand only: the path cannot be loaded; the old one goes on answering.
        """
        with self._lock:
            self._check_usable()
            name = _check_path(path, self.manifest)
            loaded = self._loaded.get(name) if self._mode == RESIDENT else None
            if loaded is not None:
                changed = self._activate(loaded, reason)
        if loaded is None:
            with self._change():
                changed = self._switch_on_demand(name, reason)
        if changed:
            _log.info("path %r answers from now on, reason %r", name, reason)

    @contextmanager
    def using(self, path: str) -> Iterator[SmartModel]:
        """Let ``path`` answer the calls of this thread or asyncio task until the block ends, whatever others switch to.

            with model.using("robust"):
                scores = model(frames)

        Tasks and `arun` calls that are started in the block take the path too, until the block ends: wait for them in
        it. On demand a path that is not active is loaded at the beginning of the block and dropped at its end.

        Raises:
            PathError: The bundle has no such path.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
            BundleError, EngineError, OSError: On demand only: the path cannot be loaded, or not within the budget.
        """
        name = self._pin(path)
        around = _scopes.get() or {}
        scope = _Scope(name, around.get(self._number))
        try:
            token = _scopes.set(MappingProxyType({**around, self._number: scope}))
            try:
                yield self
            finally:
                scope.ended = True
                with suppress(ValueError):  # a generator that is closed elsewhere: in this context nothing was set
                    _scopes.reset(token)
        finally:
            self._unpin(name)

    def reload(self, bundle: str | os.PathLike[str]) -> None:
        """Serve from another bundle, or from this one's directory anew, without an interruption.

        It is loaded beside the old one, checked, and warm before it takes over, so for a moment there must be memory
        for both. The active path keeps its name, options of `load` hold on (``trust`` too), and `stats` go on.

        Raises:
            BundleError: Not a bundle, changed, not signed with the key, or for another input, other classes or without
                one of the paths.
            EngineError: The engine refuses a graph, or there is no room for it.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
            OSError: The system cannot read a file.

            Whatever is raised, the old bundle goes on serving.
        """
        with self._change():
            try:
                self._reload(bundle)
            except BaseException:
                _log.warning("reload failed; the bundle %.12s goes on serving", self.bundle.digest)
                raise
        _log.info("the bundle %.12s serves from now on", self.bundle.digest)
        log_notes(self.manifest, engine_name=self.engine_name)

    def memory(self) -> MemoryReport:
        """Return what each path costs, and whether it is loaded."""
        with self._lock:
            loaded, costs, mode = self._loaded, self._loader.costs, self._mode
        return MemoryReport(
            mode=mode,
            budget_bytes=self._memory if isinstance(self._memory, int) else None,
            paths=MappingProxyType(
                {
                    name: PathMemory(
                        loaded=name in loaded,
                        file_bytes=cost,
                        resident_bytes=loaded[name].resident_bytes if name in loaded else None,
                    )
                    for name, cost in costs.items()
                }
            ),
            process_bytes=resident_bytes(),
        )

    @property
    def bundle(self) -> Bundle:
        """The bundle that is served."""
        return self._loader.bundle

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the bundle on this engine, a sentence each; logged as warnings when it is loaded."""
        return notes_on(self.manifest, engine_name=self.engine_name)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the scores."""
        return self.manifest.class_names

    @property
    def stats(self) -> Stats:
        """What the model did so far, a snapshot; stays readable after `close`."""
        return self._recorder.snapshot()

    def close(self) -> None:
        """Give back engines and files; calls in flight finish, later ones raise ClosedError. May be called again.

        A load that another thread has begun is waited for.
        """
        with self._lock:
            if self._unusable:
                return
            self._unusable = "expected an open model, got a closed one; load the bundle again"
            loaded, self._loaded, self._active = self._loaded, {}, None
            self._settled = True
        for one in loaded.values():
            one.retire()
        with self._changes:
            self._loader.close()

    def __enter__(self) -> SmartModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def after_fork_in_child(self) -> None:
        """Refuse all further use in a forked child: see `forks`."""
        forks.never_free(one.engine for one in self._loaded.values())
        self._recorder.new_lock()
        self._new_locks()
        self._unusable = self._unusable or (
            "expected a model that this process loaded, got one from before a fork; load the bundle in the child"
        )
        self._loaded, self._active = {}, None

    # What a call does.

    def _scope(self) -> str | None:
        """Return the path that `using` asks for in this thread or task."""
        scopes = _scopes.get()
        scope = None if scopes is None else scopes.get(self._number)
        while scope is not None and scope.ended:
            scope = scope.outer
        return None if scope is None else scope.path

    def _enter(self, call: Call) -> LoadedPath:
        """Return the path that ``call`` is to run on, entered."""
        while True:
            name = self._scope()
            loaded = self._active if name is None else self._loaded.get(name)
            if loaded is not None and loaded.enter(call):
                return loaded
            # Closed, or replaced just now, or no path is loaded.
            self._check_usable()
            while not self._settled:
                time.sleep(_POLL_SECONDS)
            if self._lost and self._active is None:
                raise EngineError(self._lost)

    # What changes the path and the bundle.

    def _check_usable(self) -> None:
        if self._unusable:
            raise ClosedError(self._unusable)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Hold ``_changes``; refuse a change that a signal handler starts in the middle of one of its own thread."""
        with self._changes:
            if self._changing:
                raise EngineError(
                    "expected one change of the model at a time, got one inside of another; "
                    "let a signal handler only say that it came, and act outside of it"
                )
            self._check_usable()
            self._changing = True
            try:
                yield
            finally:
                self._changing = False

    def _activate(self, loaded: LoadedPath, reason: str) -> bool:
        """Let ``loaded`` answer from now on; say whether that is a switch. ``_lock`` is held."""
        changed = loaded.name != self._path
        self._active, self._path, self._lost = loaded, loaded.name, ""
        if changed:
            self._recorder.switch(reason)
        return changed

    def _switch_on_demand(self, name: str, reason: str) -> bool:
        outside = sys.exc_info()[1]  # what the caller is handling, if anything, is not ours to touch
        with self._lock:
            self._check_usable()
            loaded, old = self._loaded.get(name), self._active
            if loaded is not None:
                changed = self._activate(loaded, reason)
        if loaded is None:
            try:
                changed = self._install(self._load_beside(name), reason)
            except OutOfMemoryError as error:
                if old is None or not self._may_take_the_place_of(old, name):
                    raise
                release_frames(error, outside=outside)
                _log.warning("no room for the path %r beside %r; calls wait while it is loaded", name, old.name)
                changed = self._switch_in_place_of(old, name, reason, outside=outside)
        self._drop_idle_paths()
        return changed

    def _install(self, fresh: LoadedPath, reason: str) -> bool:
        """Let a path answer that was loaded just now; say whether that is a switch."""
        with self._lock:
            if not self._unusable:
                self._loaded = {**self._loaded, fresh.name: fresh}
                return self._activate(fresh, reason)
        fresh.retire()
        raise ClosedError(self._unusable)

    def _load_beside(self, name: str) -> LoadedPath:
        """Load a path beside those that are loaded; OutOfMemoryError if the budget or the system forbids it."""
        self._check_budget({*self._loaded, name})
        return self._loader.load(name)

    def _check_budget(self, paths: Collection[str]) -> None:
        needed = sum(self._loader.costs[path] for path in paths)
        if isinstance(self._memory, int) and needed > self._memory:
            raise OutOfMemoryError(
                f"expected a budget of at least {needed} bytes for {', '.join(map(repr, sorted(paths)))} at once, got "
                f"{self._memory}; end the block that uses one of them, or allow more"
            )

    def _may_take_the_place_of(self, old: LoadedPath, name: str) -> bool:
        """Say whether dropping ``old``, which no scope uses, makes room for ``name`` as far as the budget goes."""
        with self._lock:
            if self._pins[old.name]:
                return False
            rest = self._loaded.keys() - {old.name}
        try:
            self._check_budget({*rest, name})
        except OutOfMemoryError:
            return False
        return True

    def _check_unused(self, old: LoadedPath) -> None:
        if self._pins[old.name]:
            raise OutOfMemoryError(
                f"expected room for another path, got the only room taken by {old.name!r}, which a block uses; "
                "switch again when it has ended"
            )

    def _switch_in_place_of(self, old: LoadedPath, name: str, reason: str, *, outside: BaseException | None) -> bool:
        """Drop ``old``, then load ``name``; if that fails, load ``old`` again and raise. Calls wait meanwhile."""
        costs = self._loader.costs
        if not has_room(LOAD_PEAK * max(costs[name], costs[old.name]) - costs[old.name]):
            raise OutOfMemoryError(
                f"expected memory to load the path {name!r} in the place of {old.name!r}, got too little for the "
                "moment of loading; free some, or export with a lower density"
            )
        dropped = False
        try:
            with self._lock:
                self._check_usable()
                self._check_unused(old)
                dropped = True
                self._settled = False
                self._active = None
                self._loaded = {other: one for other, one in self._loaded.items() if one is not old}
            old.drain()
            give_back_freed()
            return self._install(self._loader.load(name), reason)
        except BaseException as error:
            if not dropped or isinstance(error, ClosedError):
                raise
            # Until a path is loaded again this is what calls are told, whatever interrupts that.
            self._lost = f"expected a path to be loaded, got none: loading {name!r} failed ({error})"
            old.retire()
            release_frames(error, outside=outside)
            give_back_freed()
            try:
                self._install(self._loader.load(old.name), "")
            except Exception as second:
                self._lost += f", and loading {old.name!r} again failed too ({second}); switch or reload to try again"
                _log.error("%s", self._lost)
            raise
        finally:
            self._settled = True

    def _drop_idle_paths(self) -> None:
        """On demand, let go of the paths that neither answer nor are in use by a scope."""
        with self._lock:
            if self._mode == RESIDENT:
                return
            kept = {name: one for name, one in self._loaded.items() if one is self._active or self._pins[name]}
            dropped = [one for name, one in self._loaded.items() if name not in kept]
            self._loaded = kept
        for one in dropped:
            one.retire()
        if dropped:
            give_back_freed()

    def _pin(self, path: str) -> str:
        """Keep ``path`` loaded until `_unpin`, and load it if it is not; return its name."""
        with self._lock:
            self._check_usable()
            name = _check_path(path, self.manifest)
            if name in self._loaded:
                self._pins[name] += 1
                return name
        with self._change():
            fresh = None if name in self._loaded else self._load_beside(name)
            with self._lock:
                if not self._unusable:
                    if fresh is not None:
                        self._loaded = {**self._loaded, name: fresh}
                    self._pins[name] += 1
                    return name
            if fresh is not None:
                fresh.retire()
            raise ClosedError(self._unusable)

    def _unpin(self, name: str) -> None:
        with self._lock:
            self._pins[name] -= 1
        self._drop_idle_paths()

    def _reload(self, bundle: str | os.PathLike[str]) -> None:
        with ExitStack() as undo:
            fresh = Loader.open(bundle, trust=self._trust, engine_name=self.engine_name, options=self._options)
            undo.callback(fresh.close)
            manifest = fresh.bundle.manifest
            _check_replaces(manifest, self.manifest)
            mode = choose_mode(self._memory, costs=fresh.costs)
            fresh.verify_all_but(manifest.paths if mode == RESIDENT else (self._path,))
            loaded: dict[str, LoadedPath] = {}
            while True:
                with self._lock:
                    self._check_usable()
                    wanted = set(manifest.paths) if mode == RESIDENT else {self._path, *+self._pins}
                    missing = wanted - loaded.keys()
                    if not missing:
                        old, old_loader = self._loaded, self._loader
                        self._recorder.add_paths(manifest.paths)
                        self._recorder.reload()
                        self._loader, self._loaded, self._mode = fresh, loaded, mode
                        self._active, self._lost = loaded[self._path], ""
                        break
                for name in manifest.paths:
                    if name in missing:
                        loaded[name] = fresh.load(name)
                        undo.callback(loaded[name].retire)
            undo.pop_all()
        for one in old.values():
            one.retire()
        old_loader.close()
        if mode == RESIDENT:
            fresh.close()
        self._drop_idle_paths()
        give_back_freed()


def _check_path(path: str, manifest: Manifest) -> str:
    is_text = isinstance(path, str)  # a list cannot be looked up, and an array is equal in its own way
    if is_text and path in manifest.paths:
        return path
    names = ", ".join(repr(name) for name in manifest.paths)
    is_dense = is_text and path == DENSE
    remedy = "the dense baseline is for smart-bench only" if is_dense else "`smart-run info` describes them"
    raise PathError(f"expected one of the paths {names}, got {path!r}; {remedy}")


def _check_replaces(new: Manifest, old: Manifest) -> None:
    """Check that what callers rely on stays: they go on with the same arrays, classes and paths."""
    for what, theirs, ours in (
        ("input", new.input.shape, old.input.shape),
        ("pictures' preprocessing", new.preprocessing, old.preprocessing),
        ("classes", new.class_names, old.class_names),
    ):
        if theirs != ours:
            raise BundleError(
                f"expected a bundle with the {what} of the one that it replaces, {_short(ours)}, got {_short(theirs)}; "
                "load it as a model of its own"
            )
    if lost := [name for name in old.paths if name not in new.paths]:
        raise BundleError(
            f"expected a bundle with the path {lost[0]!r} like the one that it replaces, got none; "
            "load it as a model of its own"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
