"""Which paths of a bundle are loaded, which one answers, and how both change while calls go on."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

from smart_runtime import forks
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import check_path, check_replaces
from smart_runtime.causes import HAND, RESTORED, Cause
from smart_runtime.errors import ClosedError, EngineError, OutOfMemoryError
from smart_runtime.memory import (
    RESIDENT,
    MemoryReport,
    Mode,
    check_room,
    choose_mode,
    give_back_freed,
    memory_report,
    release_frames,
    releasing,
)
from smart_runtime.scopes import Scope
from smart_runtime.serving import POLL_SECONDS, Call, LoadedPath, Loader
from smart_runtime.stats import Recorder

OpenLoader: TypeAlias = Callable[[str | os.PathLike[str]], Loader]
"""Opens the bundle in a directory, for the engine and with the options of one model."""
_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class PathState:
    """The loaded paths of one model; safe to use from any number of threads, and in signal handlers as `SmartModel` is.

    ``loaded`` holds the paths that are loaded, ``path`` is the name of the one that answers, and ``settled`` is False
    while calls wait because no path is loaded.

    Interrupts strike between any two calls, so: fields that belong together change in one call of C (`_become`); locks
    are held by a ``with`` of their own, which is C too; who is in a block is a fact about its scope, not a count.
    """

    def __init__(
        self,
        loader: Loader,
        loaded: Mapping[str, LoadedPath],
        *,
        path: str,
        memory: Mode | int,
        mode: Mode,
        open_loader: OpenLoader,
    ) -> None:
        """Use `load`; this takes paths that are loaded, ``path`` among them."""
        self._memory = memory
        self._open_loader = open_loader
        self.recorder = Recorder(loader.bundle.manifest.paths)
        # What a call reads, each in one go: a name and an engine that belong together.
        self._active: LoadedPath | None = loaded[path]
        self.loaded: Mapping[str, LoadedPath] = dict(loaded)  # replaced, never changed
        self.path = path
        self.overridden = False  # a hand has set the path: what a policy asks for is not done
        self.loader = loader
        self._mode = mode
        self._blocks: set[Scope] = set()
        self.unusable = ""  # why nothing may be done any more
        self._lost = ""  # why no path is loaded, where one should be
        self._new_locks()
        forks.guard(self)

    def _new_locks(self) -> None:
        # Both are re-entrant for the sake of signal handlers, which interrupt a thread that may hold them.
        self._lock = threading.RLock()  # for the fields above, never held for long; calls do not take it
        self._changes = threading.RLock()  # orders what takes long: loading, reloading
        self._changing = threading.Lock()  # held with it: not re-entrant, so that it shows that a handler came again
        # A flag that is polled: an exception sent to a thread can leave the lock of a threading.Event locked for good.
        self.settled = True

    @classmethod
    def load(
        cls, bundle: str | os.PathLike[str], *, path: str | None, memory: Mode | int, open_loader: OpenLoader
    ) -> PathState:
        """Load what ``memory`` asks for, ``path`` among it; arguments and errors are those of `SmartModel.load`."""
        return releasing(partial(cls._load, bundle, path=path, memory=memory, open_loader=open_loader))

    @classmethod
    def _load(
        cls, bundle: str | os.PathLike[str], *, path: str | None, memory: Mode | int, open_loader: OpenLoader
    ) -> PathState:
        loader = open_loader(bundle)
        loaded: dict[str, LoadedPath] = {}
        try:
            manifest = loader.bundle.manifest
            first = check_path(manifest.default_path if path is None else path, manifest.paths)
            mode = choose_mode(memory, costs=loader.costs)
            wanted = tuple(manifest.paths) if mode == RESIDENT else (first,)
            loader.verify_all_but(wanted)
            for name in wanted:
                loaded[name] = loader.load(name)
            if mode == RESIDENT:
                loader.close()
            return cls(loader, loaded, path=first, memory=memory, mode=mode, open_loader=open_loader)
        except BaseException:
            for one in loaded.values():
                one.retire()
            loader.close()
            raise

    @property
    def bundle(self) -> Bundle:
        """The bundle whose paths these are."""
        return self.loader.bundle

    def check_usable(self) -> None:
        """Raise ClosedError if the model was closed, or this process was forked from the one that loaded it."""
        if self.unusable:
            raise ClosedError(self.unusable)

    def enter(self, call: Call, scope: Callable[[], str | None]) -> LoadedPath:
        """Return the path that ``call`` is to run on, entered: the one that ``scope`` names, else the active one."""
        while True:
            name = scope()
            loaded = self._active if name is None else self.loaded.get(name)
            if loaded is not None and loaded.enter(call):
                return loaded
            # Closed, or replaced just now, or no path is loaded.
            self.check_usable()
            while not self.settled:
                time.sleep(POLL_SECONDS)
            if self._lost and self._active is None:
                raise EngineError(self._lost)

    def memory(self) -> MemoryReport:
        """Return what each path costs, and whether it is loaded."""
        with self._lock:
            loaded, sizes, mode = self.loaded, self.loader.file_bytes, self._mode
        return memory_report(mode, self._memory, sizes=sizes, loaded=loaded)

    def close(self) -> bool:
        """Give back engines and files once the calls in flight have finished; False if that was done before."""
        loaded: Mapping[str, LoadedPath] = {}
        try:
            with self._lock:
                if self.unusable:
                    return False
                loaded, why = self.loaded, "the model is closed; load the bundle again"
                self._become(unusable=why, loaded={}, _active=None, settled=True)
            self._let_go(loaded)
        except BaseException:
            if self.unusable:  # or nothing has happened yet, and the model is open
                self._let_go(loaded)
            raise
        return True

    def _let_go(self, loaded: Mapping[str, LoadedPath]) -> None:
        for one in loaded.values():
            one.retire()
        with self._changes:
            self.loader.close()

    def _become(self, **fields: Any) -> None:
        """Set fields of this object, all in one call of C, so that an interrupt finds every one set or none."""
        vars(self).update(fields)

    def after_fork_in_child(self) -> None:
        """Refuse all further use in a forked child: see `forks`."""
        forks.never_free(one.engine for one in self.loaded.values())
        self.recorder.new_lock()
        self._new_locks()
        self.unusable = self.unusable or "the model was loaded before a fork; load the bundle in this process"
        self.loaded, self._active = {}, None

    def _change(self, work: Callable[[], _T]) -> _T:
        """Return ``work()``, one at a time; refuse what a signal handler starts in the middle of its own thread's."""
        with self._changes:
            if self._changing.locked():
                raise EngineError(
                    "the model is in the middle of another change, which a signal handler interrupted; "
                    "let the handler only note the signal, and act on it outside"
                )
            with self._changing:
                self.check_usable()
                self._drop_idle_paths()  # that an interrupt has left
                return releasing(work)

    # Switching.

    def switch(self, path: str, cause: Cause) -> None:
        """Let ``path`` answer from now on: see `SmartModel.switch`."""
        with self._lock:
            self.check_usable()
            name = check_path(path, self.bundle.manifest.paths)
            loaded = self.loaded.get(name) if self._mode == RESIDENT else None
            changed = loaded is not None and self._activate(loaded, cause)
        if loaded is None:
            changed = self._change(partial(self._switch_on_demand, name, cause))
        if changed:
            _log.info("path %r answers from now on, reason %r", name, cause.reason)

    def _ignores(self, name: str, cause: Cause) -> bool:
        """Say whether a policy asks for another path than a hand has set, and count that. ``_lock`` is held."""
        ignored = self.overridden and cause.of_policy and name != self.path
        if ignored:
            self.recorder.ignored_switch()
        return ignored

    def _activate(self, loaded: LoadedPath, cause: Cause) -> bool:
        """Let ``loaded`` answer from now on; say whether that is a switch. ``_lock`` is held."""
        old, name = self.path, loaded.name
        if self._ignores(name, cause):
            return False
        self.overridden = self.overridden or cause.by == HAND
        self._become(loaded={**self.loaded, name: loaded}, _active=loaded, path=name, _lost="")
        if name != old:
            self.recorder.switch(cause, old=old, new=name)
        return name != old

    def _switch_on_demand(self, name: str, cause: Cause) -> bool:
        outside = sys.exc_info()[1]  # what the caller is handling, if anything, is not ours to touch
        with self._lock:
            self.check_usable()
            if self._ignores(name, cause):  # it stays so: here switches come one after the other
                return False
            loaded, old = self.loaded.get(name), self._active
            changed = loaded is not None and self._activate(loaded, cause)
        if loaded is None:
            try:
                changed = self._install(self._load_beside(name), cause)
            except OutOfMemoryError as error:
                if old is None or not self._may_take_the_place_of(old, name):
                    raise
                release_frames(error, outside=outside)
                _log.warning("no room for the path %r beside %r; calls wait while it is loaded", name, old.name)
                changed = self._switch_in_place_of(old, name, cause, outside=outside)
        self._drop_idle_paths()
        return changed

    def _install(self, fresh: LoadedPath, cause: Cause) -> bool:
        """Let a path answer that was loaded just now; say whether that is a switch."""
        with self._lock:
            if not self.unusable:
                return self._activate(fresh, cause)
        fresh.retire()
        raise ClosedError(self.unusable)

    def _load_beside(self, name: str) -> LoadedPath:
        """Load a path beside those that are loaded; OutOfMemoryError if the budget or the system forbids it."""
        together = {*self.loaded, name}
        if needed := self._bytes_over_budget(together):
            raise OutOfMemoryError(
                f"expected a budget of at least {needed} bytes for {', '.join(map(repr, sorted(together)))} at once, "
                f"got {self._memory}; end the block that uses one of them, or allow more"
            )
        return self.loader.load(name)

    def _may_take_the_place_of(self, old: LoadedPath, name: str) -> bool:
        """Say whether dropping ``old``, which no scope uses, makes room for ``name`` as far as the budget goes."""
        with self._lock:
            return not self.pins[old.name] and not self._bytes_over_budget({*self.loaded.keys() - {old.name}, name})

    def _bytes_over_budget(self, paths: Collection[str]) -> int:
        """Return the bytes that ``paths`` need together if the budget is smaller, else 0."""
        needed = sum(self.loader.costs[path] for path in paths)
        return needed if isinstance(self._memory, int) and needed > self._memory else 0

    def _check_unused(self, old: LoadedPath) -> None:
        if self.pins[old.name]:
            raise OutOfMemoryError(
                f"there is room for one path, {old.name!r}, which a block uses; switch again when it has ended"
            )

    def _switch_in_place_of(self, old: LoadedPath, name: str, cause: Cause, *, outside: BaseException | None) -> bool:
        """Drop ``old``, then load ``name``; if that fails, load ``old`` again and raise. Calls wait meanwhile."""
        check_room(self.loader.costs, new=name, old=old.name)
        dropped = False
        try:
            with self._lock:
                self.check_usable()
                self._check_unused(old)
                dropped = True
                others = {other: one for other, one in self.loaded.items() if one is not old}
                self._become(settled=False, _active=None, loaded=others)
            old.drain()
            give_back_freed()
            return self._install(self.loader.load(name), cause)
        except BaseException as error:
            if not dropped or isinstance(error, ClosedError):
                raise
            # Until a path is loaded again this is what calls are told, whatever interrupts that.
            self._lost = f"no path is loaded: loading {name!r} failed ({error})"
            old.retire()
            release_frames(error, outside=outside)
            give_back_freed()
            try:
                self._install(self.loader.load(old.name), RESTORED)
            except Exception as second:
                self._lost += f", and loading {old.name!r} again failed too ({second}); switch or reload to try again"
                _log.error("%s", self._lost)
            raise
        finally:
            self.settled = True

    def _drop_idle_paths(self) -> None:
        """On demand, let go of the paths that neither answer nor are in use by a scope."""
        with self._lock:
            if self._mode == RESIDENT:
                return
            kept = {name: one for name, one in self.loaded.items() if one is self._active or self.pins[name]}
            dropped = [one for name, one in self.loaded.items() if name not in kept]
            self.loaded = kept
        for one in dropped:
            one.retire()
        if dropped:
            give_back_freed()

    # Scopes.

    @property
    def pins(self) -> Counter[str]:
        """How many blocks of `SmartModel.using` keep each path loaded."""
        return Counter(scope.path for scope in tuple(self._blocks) if not scope.ended)

    def pin(self, scope: Scope) -> None:
        """Keep the path of ``scope`` loaded until that has ended, and load it if it is not."""
        with self._lock:
            self.check_usable()
            check_path(scope.path, self.bundle.manifest.paths)
            if scope.path in self.loaded:
                self._blocks.add(scope)
                return
        self._change(partial(self._pin_on_demand, scope))

    def _pin_on_demand(self, scope: Scope) -> None:
        fresh = None if scope.path in self.loaded else self._load_beside(scope.path)
        with self._lock:
            if not self.unusable:
                self._blocks.add(scope)
                if fresh is not None:
                    self.loaded = {**self.loaded, scope.path: fresh}
                return
        if fresh is not None:
            fresh.retire()
        raise ClosedError(self.unusable)

    def unpin(self, scope: Scope) -> None:
        """Forget a scope that has ended; on demand, a path that nothing else uses is dropped."""
        self._blocks.discard(scope)
        releasing(self._drop_idle_paths)

    # Reloading.

    def reload(self, bundle: str | os.PathLike[str]) -> None:
        """Serve from another bundle: see `SmartModel.reload`."""
        self._change(partial(self._reload, bundle))
        _log.info("the bundle %.12s serves from now on", self.bundle.digest)

    def _reload(self, bundle: str | os.PathLike[str]) -> None:
        old_loader, fresh = self.loader, None
        old: Mapping[str, LoadedPath] = {}
        loaded: dict[str, LoadedPath] = {}
        try:
            fresh = self._open_loader(bundle)
            manifest = fresh.bundle.manifest
            check_replaces(manifest, self.bundle.manifest)
            mode = choose_mode(self._memory, costs=fresh.costs)
            fresh.verify_all_but(manifest.paths if mode == RESIDENT else (self.path,))
            while self.loader is not fresh:
                with self._lock:
                    self.check_usable()
                    wanted = set(manifest.paths) if mode == RESIDENT else {self.path, *self.pins}
                    missing = wanted - loaded.keys()
                    if not missing:
                        old, active = self.loaded, loaded[self.path]
                        self.recorder.add_paths(manifest.paths)
                        self._become(loader=fresh, loaded=loaded, _mode=mode, _active=active, _lost="")
                        self.recorder.reload(fresh.bundle.digest)
                for name in manifest.paths:
                    if name in missing:
                        loaded[name] = fresh.load(name)
        except BaseException:
            _log.warning("reload failed; the bundle %.12s goes on serving", self.bundle.digest)
            raise
        finally:  # whichever of the two does not serve goes
            gone, loader = (old, old_loader) if self.loader is fresh else (loaded, fresh)
            for one in gone.values():
                one.retire()
            if loader is not None:
                loader.close()
        if mode == RESIDENT:
            fresh.close()
        self._drop_idle_paths()
        give_back_freed()
