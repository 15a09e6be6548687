"""How one path of a model takes the place of another while calls go on, loaded before or on demand."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias, TypeVar

from smart_runtime import forks
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import check_path
from smart_runtime.causes import HAND, RESTORED, Cause
from smart_runtime.errors import ClosedError, EngineError, OutOfMemoryError
from smart_runtime.memory import (
    RESIDENT,
    Mode,
    check_room,
    give_back_freed,
    refuse_on_demand,
    release_frames,
    releasing,
)
from smart_runtime.scopes import Scope
from smart_runtime.serving import LoadedPath, Loader, Served
from smart_runtime.stats import Recorder
from smart_runtime.together import ALL

OpenLoader: TypeAlias = Callable[[str | os.PathLike[str]], Loader]
"""Opens the bundle in a directory, for the engine and with the options of one model."""

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class PathChanges:
    """The paths of one model that are loaded, and which of them answers.

    ``loaded`` holds the paths that are loaded, and where that is all of them what runs several for one call too;
    ``path`` is the name of what answers, and ``settled`` is False while calls wait because no path is loaded.

    Interrupts strike between any two calls, so: fields that belong together change in one call of C (`_become`); locks
    are held by a ``with`` of their own, which is C too; who is in a block is a fact about its scope, not a count.
    """

    def __init__(
        self,
        loader: Loader,
        loaded: Mapping[str, Served],
        *,
        path: str,
        memory: Mode | int,
        mode: Mode,
        open_loader: OpenLoader,
    ) -> None:
        """Use `load`; this takes paths that are loaded, ``path`` among them."""
        self._memory = memory
        self._open_loader = open_loader
        self.recorder = Recorder(loader.bundle.manifest.choices)
        # What a call reads, each in one go: a name and an engine that belong together.
        self._active: Served | None = loaded[path]
        self.loaded: Mapping[str, Served] = dict(loaded)  # replaced, never changed
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

    @property
    def bundle(self) -> Bundle:
        """The bundle whose paths these are."""
        return self.loader.bundle

    def check_usable(self) -> None:
        """Raise ClosedError if the model was closed, or this process was forked from the one that loaded it."""
        if self.unusable:
            raise ClosedError(self.unusable)

    def check_choice(self, path: str) -> str:
        """Return ``path`` if it can answer.

        Raises:
            PathError: The bundle has no such path.
            EngineError: It is a mix, and paths are loaded on demand.
        """
        check_path(path, self.bundle.manifest.choices)
        self.check_loadable(path)
        return path

    def check_loadable(self, path: str) -> None:
        """Raise EngineError if ``path`` is a mix, or all paths at once, and paths are loaded on demand."""
        if self._mode != RESIDENT and path not in self.bundle.manifest.paths:
            refuse_on_demand("a call on all paths" if path == ALL else f"the mix {path!r}")

    def _become(self, **fields: Any) -> None:
        """Set fields of this object, all in one call of C, so that an interrupt finds every one set or none."""
        vars(self).update(fields)

    def after_fork_in_child(self) -> None:
        """Refuse all further use in a forked child: see `forks`."""
        forks.never_free(one.engine for one in self.loaded.values() if isinstance(one, LoadedPath))
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

    @property
    def pins(self) -> Counter[str]:
        """How many blocks of `SmartModel.using` keep each path loaded."""
        return Counter(scope.path for scope in tuple(self._blocks) if not scope.ended)

    def _ignores(self, name: str, cause: Cause) -> bool:
        """Say whether a policy asks for another path than a hand has set, and count that. ``_lock`` is held."""
        ignored = self.overridden and cause.of_policy and name != self.path
        if ignored:
            self.recorder.ignored_switch()
        return ignored

    def _activate(self, loaded: Served, cause: Cause) -> bool:
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

    def _install(self, fresh: Served, cause: Cause) -> bool:
        """Let a path answer that was loaded just now; say whether that is a switch."""
        with self._lock:
            if not self.unusable:
                return self._activate(fresh, cause)
        fresh.retire()
        raise ClosedError(self.unusable)

    def _load_beside(self, name: str) -> Served:
        """Load a path beside those that are loaded; OutOfMemoryError if the budget or the system forbids it."""
        together = {*self.loaded, name}
        if needed := self._bytes_over_budget(together):
            raise OutOfMemoryError(
                f"expected a budget of at least {needed} bytes for {', '.join(map(repr, sorted(together)))} at once, "
                f"got {self._memory}; end the block that uses one of them, or allow more"
            )
        return self.loader.load(name)

    def _may_take_the_place_of(self, old: Served, name: str) -> bool:
        """Say whether dropping ``old``, which no scope uses, makes room for ``name`` as far as the budget goes."""
        with self._lock:
            return not self.pins[old.name] and not self._bytes_over_budget({*self.loaded.keys() - {old.name}, name})

    def _bytes_over_budget(self, paths: Collection[str]) -> int:
        """Return the bytes that ``paths`` need together if the budget is smaller, else 0."""
        needed = sum(self.loader.costs[path] for path in paths)
        return needed if isinstance(self._memory, int) and needed > self._memory else 0

    def _check_unused(self, old: Served) -> None:
        if self.pins[old.name]:
            raise OutOfMemoryError(
                f"there is room for one path, {old.name!r}, which a block uses; switch again when it has ended"
            )

    def _switch_in_place_of(self, old: Served, name: str, cause: Cause, *, outside: BaseException | None) -> bool:
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
