"""Keep what was built for this device: plans, found again by everything that they depend on.

``ENGINES/<SHA-256 of the key>/`` holds ``plan``, the library's own bytes, and ``meta.json``: the key, the plan's size
and SHA-256, and what is known of it. A plan is executable code, so the folder is the user's alone, and nothing is read
or written through a folder or file that somebody else could have made or changed. An entry is written beside its place,
flushed and renamed, so that it is there whole or not at all. Of TensorRT and CUDA this module knows nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from smart_common.files import default_cache_dir, holding, new_folder_beside, replacing
from smart_runtime.bundle.files import read_at_most
from smart_runtime.engines.plan_keys import Key, canonical, differences, key_digest
from smart_runtime.engines.plan_meta import KERNELS, META, PLAN, DamagedError, Meta
from smart_runtime.engines.plan_pruning import NEW, Pruned, prune
from smart_runtime.engines.private_folder import PrivateFolder, through
from smart_runtime.errors import EngineError

MAX_META_BYTES = 2**20
MAX_KERNELS_BYTES = 2**28
INSTALL = "`smart-run install BUNDLE`"

_log = logging.getLogger(__name__)

_SUM_BYTES = 32
_BUILD_LOCK = "build.lock"

_ENTRY = re.compile(r"[0-9a-f]{64}")

_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """A plan whose bytes were checked against its sum; these very bytes are to be deserialised.

    Attributes:
        key: What it depends on.
        plan: The library's own bytes.
        facts: What else is known of it: JSON values, such as the build's seconds.
        kernels: What `PlanCache.save_kernels` has kept for it, empty if nothing.
    """

    key: Key
    plan: bytes = field(repr=False)
    facts: Mapping[str, Any]
    kernels: bytes = field(repr=False, default=b"")


class Entry(NamedTuple):
    """What is known of a plan that is in the cache: what it depends on, and `StoredPlan.facts`."""

    key: Key
    facts: Mapping[str, Any]


class PlanCache:
    """The plans of one user on one machine; safe to use from several threads and processes at once.

        cache = PlanCache()
        stored = cache.find(key) or cache.build_once(key, build)

    Every method raises EngineError where the folder cannot be used: it is a link, somebody else's, others may write
    into it, or the system refuses.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Take the folder of the cache, by default ``engines`` in that of smart-edge; it is made when it is needed.

        Raises:
            EngineError: No folder was given, and this user has no home.
        """
        chosen = folder or _default_folder()
        self.folder = Path(os.path.abspath(chosen))  # noqa: PTH100  # unlike resolve, it follows no link
        self._folder = PrivateFolder(self.folder, has_own_parent=folder is None)

    def find(self, key: Key) -> StoredPlan | None:
        """Return the plan of ``key``; None if there is none, or one that is not as it was written."""
        with self._folder.opened() as place, self._folder.refusing():
            return None if place is None else self._look(place, key_digest(key))

    def newest(self, key: Key, *, free: Collection[str]) -> Entry | None:
        """Return what is known of the plan that was installed last, of those that are as ``key`` says but for ``free``.

        None if there is none. ``free`` are names of fields that nobody has asked for in particular.
        """
        found: list[Meta] = []
        with self._folder.opened() as place, self._folder.refusing():
            for _, meta in () if place is None else self._metas(place):
                if meta is not None and all(meta.key.get(field) == key[field] for field in key.keys() - free):
                    found.append(meta)
        last = max(found, key=lambda meta: meta.installed_ns, default=None)
        return None if last is None else Entry(last.key, last.facts)

    def build_once(
        self,
        key: Key,
        build: Callable[[], tuple[bytes, Mapping[str, Any]]],
        *,
        on_wait: Callable[[int | None], None] = lambda _: None,
        anew: bool = False,
    ) -> StoredPlan:
        """Return the plan of ``key``, which ``build`` makes if there is none; of all callers one builds at a time.

        Args:
            key: What the plan depends on.
            build: Returns the plan and the facts to keep with it, JSON values. What it raises comes out; nothing is
                stored then.
            on_wait: Told, before waiting for another build, the ID of the process that does it, None where it is not
                known.
            anew: Build in any case; a plan that is there serves until the new one takes its place.
        """
        digest = key_digest(key)
        with self._folder.opened(create=True) as place, ExitStack() as locks:
            assert place is not None
            with self._folder.refusing():
                # First a lock of the key's own: who waited for this very plan need not wait for other builds as well.
                locks.enter_context(holding(place / f"{digest}.lock", on_wait=on_wait))
                if not anew and (found := self._look(place, digest)) is not None:
                    return found
                locks.enter_context(holding(place / _BUILD_LOCK, on_wait=on_wait))
            plan, facts = build()
            with self._folder.refusing():
                return self._publish(place, key, plan, facts, anew=anew)

    def set_facts(self, key: Key, facts: Mapping[str, Any]) -> None:
        """Add ``facts``, JSON values, to those of the plan of ``key``; nothing happens if there is none."""
        self._put(key, META, lambda meta: replace(meta, facts=_plain({**meta.facts, **facts})).written())

    def save_kernels(self, key: Key, kernels: bytes) -> None:
        """Keep what the library compiled for the plan of ``key`` when it ran; nothing happens if there is none."""
        if len(kernels) <= MAX_KERNELS_BYTES:
            self._put(key, KERNELS, lambda meta: _kernels_sum(meta, kernels) + kernels)

    def _put(self, key: Key, name: str, content: Callable[[Meta], bytes]) -> None:
        digest = key_digest(key)
        with self._folder.opened() as place, self._folder.refusing(), suppress(FileNotFoundError, DamagedError):
            if place is None:
                return
            with (
                holding(place / f"{digest}.lock", on_wait=lambda _: None),
                self._folder.subfolder(place, digest) as entry,
            ):
                data = content(self._meta(entry, digest))
                with replacing(through(entry) / name) as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(data)

    def set_aside(self, key: Key) -> None:
        """Rename the plan of ``key``, which the library does not take, so that it is built once more.

        It is kept as ``bad-...`` until the next of its kind, or `prune`.
        """
        digest = key_digest(key)
        with self._folder.opened() as place, self._folder.refusing():
            if place is not None:
                with holding(place / f"{digest}.lock", on_wait=lambda _: None):
                    self._put_aside(place, digest)

    def explain_missing(self, key: Key) -> str | None:
        """Return why there is no plan for ``key`` though its graph is installed, and the remedy, in one sentence.

        None where the graph is not installed at all.
        """
        digest, nearest = key_digest(key), None
        with self._folder.opened() as place, self._folder.refusing():
            if place is None:
                return None
            if (place / digest).exists():
                return f"the plan that is installed for this graph is damaged; {INSTALL} makes a new one"
            for _, meta in self._metas(place):
                if meta is not None and meta.key.get("graph") == key["graph"]:
                    found = differences(meta.key, key)
                    if nearest is None or len(found) < len(nearest):
                        nearest = found
        if nearest is None:
            return None
        return f"a plan of this graph is installed, but with {', '.join(nearest)}; {INSTALL} makes one that fits"

    def prune(
        self, *, usable: Callable[[Key], bool], keep_bytes: int | None = None, dry_run: bool = False
    ) -> tuple[Pruned, ...]:
        """Remove damaged plans, those that are set aside, and those that nothing here can use; return what went.

        So do the files of timings that belong to none of the plans that stay. What another process is building stays.

        Args:
            usable: Says of a key whether this machine could ask for it.
            keep_bytes: What may stay; those that were not used for the longest time go first. None keeps them all.
            dry_run: Return what would go, and leave it.
        """
        with self._folder.opened() as place, self._folder.refusing():
            if place is None:
                return ()
            return prune(place, self._metas(place), usable=usable, keep_bytes=keep_bytes, dry_run=dry_run)

    def _look(self, place: Path, digest: str) -> StoredPlan | None:
        try:
            return self._read(place, digest)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            _log.warning("the plan %s is damaged: %s; it is built again", self.folder / digest, error)
            return None

    def _read(self, place: Path, digest: str) -> StoredPlan:
        with self._folder.subfolder(place, digest) as entry:
            meta = self._meta(entry, digest)
            with self._file(entry, digest, PLAN) as (file, size):
                plan = read_at_most(file, meta.size + 1) if size == meta.size else b""
                if hashlib.sha256(plan).hexdigest() != meta.sha256:
                    raise DamagedError(f"its {size} bytes are not those that were written")
                with suppress(OSError):  # a disk that is read-only; prune goes by when it was last used
                    os.utime(file.fileno())
            return StoredPlan(key=meta.key, plan=plan, facts=meta.facts, kernels=self._kernels(entry, digest, meta))

    def _kernels(self, entry: int, digest: str, meta: Meta) -> bytes:
        """Return the kernels that were kept for a plan; nothing if there are none, or they are not as they were."""
        with suppress(DamagedError), self._file(entry, digest, KERNELS) as (file, _):
            data = read_at_most(file, _SUM_BYTES + MAX_KERNELS_BYTES)
            if data[:_SUM_BYTES] == _kernels_sum(meta, data[_SUM_BYTES:]):
                return data[_SUM_BYTES:]
        return b""

    @contextmanager
    def _file(self, entry: int, digest: str, name: str) -> Iterator[tuple[BinaryIO, int]]:
        try:
            with self._folder.file(entry, name, shown=f"{digest}/{name}") as opened:
                yield opened
        except FileNotFoundError as error:
            raise DamagedError(f"no {name} is in it") from error

    def _meta(self, entry: int, digest: str) -> Meta:
        with self._file(entry, digest, META) as (file, size):
            if size > MAX_META_BYTES:
                raise DamagedError(f"{META} has {size} bytes")
            meta = Meta.read(read_at_most(file, MAX_META_BYTES))
        if key_digest(meta.key) != digest:
            raise DamagedError("it is of another key")
        return meta

    def _metas(self, place: Path) -> Iterator[tuple[str, Meta | None]]:
        """Yield the name of each entry with what it says of itself, None where that is damaged, or not to be read."""
        for name in sorted(filter(_ENTRY.fullmatch, os.listdir(place))):  # noqa: PTH208  # names alone
            meta = None
            with suppress(OSError, DamagedError, EngineError), self._folder.subfolder(place, name) as entry:
                meta = self._meta(entry, name)
            yield name, meta

    def _publish(self, place: Path, key: Key, plan: bytes, facts: Mapping[str, Any], *, anew: bool) -> StoredPlan:
        digest = key_digest(key)
        meta = Meta(
            key=_plain(key),
            size=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            facts=_plain(facts),
            installed_ns=time.time_ns(),
        )
        with new_folder_beside(place / NEW) as beside:
            beside.chmod(0o700)
            for name, data in ((PLAN, plan), (META, meta.written())):
                with replacing(beside / name) as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(data)
            _flush(beside)
            while True:
                try:
                    beside.rename(place / digest)
                    break
                except OSError as error:
                    if error.errno not in _TAKEN:
                        raise
                # A damaged one lies there, or an older one; or on a file system without locks somebody else was first.
                if not anew and (found := self._look(place, digest)) is not None:
                    return found
                self._put_aside(place, digest)
        _flush(place)
        return StoredPlan(key=meta.key, plan=plan, facts=meta.facts)

    def _put_aside(self, place: Path, digest: str) -> None:
        bad = place / f"bad-{digest}"
        with new_folder_beside(place / NEW) as waste:
            with suppress(FileNotFoundError):
                bad.rename(waste / bad.name)
            with suppress(FileNotFoundError):
                (place / digest).rename(bad)


def _default_folder() -> Path:
    base = default_cache_dir()
    if base is None:
        raise EngineError(
            "no folder to keep built engines in: this user has no home; set XDG_CACHE_HOME, or name one with cache_dir"
        )
    return base / "engines"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values as they will be read back."""
    plain: dict[str, Any] = json.loads(canonical(values))
    return plain


def _kernels_sum(meta: Meta, kernels: bytes) -> bytes:
    """Return the sum that stands before kernels: of them, and of the plan that they belong to."""
    return hashlib.sha256(meta.sha256.encode("ascii") + kernels).digest()


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
