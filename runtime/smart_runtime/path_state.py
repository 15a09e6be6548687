"""Which paths of a bundle are loaded, which one answers, and how both change while calls go on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial

from smart_runtime.bundle.manifest import check_path, check_replaces
from smart_runtime.causes import Cause
from smart_runtime.errors import ClosedError, EngineError
from smart_runtime.memory import (
    RESIDENT,
    MemoryReport,
    Mode,
    choose_mode,
    give_back_freed,
    memory_report,
    refuse_on_demand,
    releasing,
)
from smart_runtime.path_changes import OpenLoader, PathChanges
from smart_runtime.scopes import Scope
from smart_runtime.serving import POLL_SECONDS, Call, LoadedPath, Served
from smart_runtime.together import retire_all, with_mixes

_log = logging.getLogger(__name__)


class PathState(PathChanges):
    """The paths of one model; safe to use from any number of threads, and in signal handlers as `SmartModel` is."""

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
            first = check_path(manifest.default_path if path is None else path, manifest.choices)
            mode = choose_mode(memory, costs=loader.costs)
            if mode != RESIDENT and first in manifest.mixes:
                refuse_on_demand(f"the mix {first!r}")
            wanted = tuple(manifest.paths) if mode == RESIDENT else (first,)
            loader.verify_all_but(wanted)
            for name in wanted:
                loaded[name] = loader.load(name)
            if mode == RESIDENT:
                loader.close()
            served = with_mixes(loaded, manifest) if mode == RESIDENT else loaded
            return cls(loader, served, path=first, memory=memory, mode=mode, open_loader=open_loader)
        except BaseException:
            retire_all(loaded)
            loader.close()
            raise

    def enter(self, call: Call, scope: Callable[[], str | None]) -> Served:
        """Return what ``call`` is to run on, entered: the one that ``scope`` names, else the active one."""
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
            if name is not None:
                self.check_loadable(name)  # no wait brings what is never loaded

    def memory(self) -> MemoryReport:
        """Return what each path costs, and whether it is loaded."""
        with self._lock:
            loaded, sizes, mode = self.loaded, self.loader.file_bytes, self._mode
        paths = {name: one for name, one in loaded.items() if isinstance(one, LoadedPath)}
        return memory_report(mode, self._memory, sizes=sizes, loaded=paths)

    def close(self) -> bool:
        """Give back engines and files once the calls in flight have finished; False if that was done before."""
        loaded: Mapping[str, Served] = {}
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

    def _let_go(self, loaded: Mapping[str, Served]) -> None:
        retire_all(loaded)
        with self._changes:
            self.loader.close()

    # Switching.

    def switch(self, path: str, cause: Cause) -> None:
        """Let ``path`` answer from now on: see `SmartModel.switch`."""
        with self._lock:
            self.check_usable()
            name = self.check_choice(path)
            loaded = self.loaded.get(name) if self._mode == RESIDENT else None
            changed = loaded is not None and self._activate(loaded, cause)
        if loaded is None:
            changed = self._change(partial(self._switch_on_demand, name, cause))
        if changed:
            _log.info("path %r answers from now on, reason %r", name, cause.reason)

    # Scopes.

    def pin(self, scope: Scope) -> None:
        """Keep the path of ``scope`` loaded until that has ended, and load it if it is not."""
        with self._lock:
            self.check_usable()
            self.check_choice(scope.path)
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
        old: Mapping[str, Served] = {}
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
                    if mixes := wanted - manifest.paths.keys():
                        refuse_on_demand(f"the mix {min(mixes)!r}")
                    missing = wanted - loaded.keys()
                    if not missing:
                        served = with_mixes(loaded, manifest) if mode == RESIDENT else loaded
                        old, active = self.loaded, served[self.path]
                        self.recorder.add_paths(manifest.choices)
                        self._become(loader=fresh, loaded=served, _mode=mode, _active=active, _lost="")
                        self.recorder.reload(fresh.bundle.digest)
                for name in manifest.paths:
                    if name in missing:
                        loaded[name] = fresh.load(name)
        except BaseException:
            _log.warning("reload failed; the bundle %.12s goes on serving", self.bundle.digest)
            raise
        finally:  # whichever of the two does not serve goes
            gone, loader = (old, old_loader) if self.loader is fresh else (loaded, fresh)
            retire_all(gone)
            if loader is not None:
                loader.close()
        if mode == RESIDENT:
            fresh.close()
        self._drop_idle_paths()
        give_back_freed()
