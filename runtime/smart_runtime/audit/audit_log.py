"""The audit log of a model: what happens is queued, and a thread writes it down."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from smart_common.names import printable
from smart_common.outputs import bundle_around
from smart_runtime import forks
from smart_runtime.audit.writer import Event, Writer
from smart_runtime.errors import AuditError
from smart_runtime.serving import POLL_SECONDS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from smart_runtime.path_state import PathState

_log = logging.getLogger(__name__)

MIN_BYTES, MAX_BYTES = 64 * 1024, 2**30
MAX_KEEP = 100
_MOST_WAITING = 10_000  # events; where the disk takes none, later ones are lost
_CLOSE_SECONDS = 10.0
_EXIT_SECONDS = 2.0

_logs: weakref.WeakSet[AuditLog] = weakref.WeakSet()
_hooks: list[None] = []


class AuditLog:
    """A file of JSON lines, one for every load, switch, reload and close of one model, each with the hash of the last.

        log = AuditLog("switches.jsonl", max_bytes=1_000_000, keep=4, key="device.key")
        model = SmartModel.load("bundle/", audit=log)

    A log that is there is gone on with. A thread writes it, so no call and no switch waits for the disk; a full disk or
    a removed file costs lines, which are counted as `failures`, and the next line that can be written says how many.
    `SmartModel.close` waits until all is written, for 10 seconds at most; a program that ends without it gives its
    lines 2 seconds, and one that is killed loses those of the last moments.
    ``smart-run audit verify FILE`` checks the file.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        max_bytes: int = 2**20,
        keep: int = 4,
        key: str | os.PathLike[str] | Ed25519PrivateKey | None = None,
    ) -> None:
        """Name the file; it is opened when a model is loaded.

        Args:
            file: Links are not followed.
            max_bytes: A file that is larger, by a line at most, becomes ``FILE.1``, that one ``FILE.2``, and so on.
            keep: How many of those are kept, 0 to 100.
            key: An Ed25519 private key, or its PEM file, that signs the chain when a file ends and when the model is
                closed: a key of the device's own, since whoever can read it can sign. Needs the extra ``sign``.

        Raises:
            AuditError: ``file`` names no file, or ``max_bytes`` or ``keep`` is out of range.
            SignatureError, MissingExtraError, OSError: ``key`` is none, or cannot be read.
        """
        if not _is_name(file):
            raise AuditError(f"expected the name of a file for the audit log, got {file!r:.60}")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or not MIN_BYTES <= max_bytes <= MAX_BYTES:
            raise AuditError(f"expected max_bytes from {MIN_BYTES} to {MAX_BYTES}, got {max_bytes!r:.40}")
        if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep <= MAX_KEEP:
            raise AuditError(f"expected keep from 0 to {MAX_KEEP} files, got {keep!r:.40}")
        if key is not None:
            from smart_runtime.bundle.signatures import private_key  # noqa: PLC0415  # only for who signs

            key = private_key(key)
        self.path = Path(file).absolute()
        self._writer = Writer(self.path, max_bytes=max_bytes, keep=keep, key=key)
        self._work: _Work | None = None
        self._before = 0
        self._owner: weakref.ref[PathState] | None = None  # a model that nobody closes can go before its log

    @property
    def failures(self) -> int:
        """How many lines could not be written, and how often the file was removed or changed by somebody else."""
        return self._before + self._writer.disturbed + (0 if self._work is None else self._work.lost)

    @property
    def head(self) -> str:
        """The hash of the last line that is on the disk: kept elsewhere, it shows whether the end was cut off."""
        return self._writer.head

    def begin(self, state: PathState, *, engine: str, policy: str | None) -> None:
        """Open the file, and write the switches, reloads and end of a model that was loaded just now.

        Raises:
            AuditError: Something else lies there, a model writes it, or it lies in a bundle.
            OSError: The system refuses.
        """
        inside = bundle_around(self.path)
        if inside is not None:
            raise AuditError(f"{self.path} lies in the bundle {inside} and would damage it; name another file")
        if self._owner is not None and self._owner() is not None:
            raise AuditError(f"the audit log {self.path} belongs to another model; make one for each")
        self.close()  # where a model has gone without an end
        self._owner = weakref.ref(state)
        manifest = state.bundle.manifest
        self._start(
            bundle=state.bundle.digest,
            name=manifest.package_name,
            paths=list(manifest.choices),
            path=state.path,
            engine=engine,
            policy=policy,
        )
        state.recorder.journal = self.put

    def end(self, state: PathState) -> None:
        """Write what is left of that model and close the file, if the log is that model's; may be called again."""
        if self._owner is not None and self._owner() is state:
            state.recorder.close()
            self.close()
            self._owner = None

    def _start(self, **fields: Any) -> None:
        self._writer.open(_event("load", {"process": os.getpid(), **fields}))
        work = _Work(self._writer)
        self._work, thread = work, work.thread
        if not _hooks:  # at the first log and not on import
            atexit.register(_at_exit)
            _hooks.append(None)
        _logs.add(self)
        forks.guard(self)
        weakref.finalize(self, work.queue.put, None).atexit = False  # the thread of a model that is dropped ends
        thread.start()

    def put(self, name: str, fields: dict[str, Any]) -> None:
        """Have an event written; returns at once, and may be called in a signal handler. Never raises."""
        if self._work is not None:
            self._work.put(_event(name, fields))

    def close(self, timeout_s: float = _CLOSE_SECONDS) -> None:
        """Write what is queued, sign the chain and close the file; may be called again."""
        work = self._work
        if work is not None:
            work.queue.put(None)
            until = time.monotonic() + timeout_s
            while work.thread.is_alive():  # polled: an interrupt can leave the lock of an Event locked for good
                if time.monotonic() >= until:
                    name = printable(str(self.path))
                    _log.warning("the audit log %s takes over %g s; its last lines may be lost", name, timeout_s)
                    return
                time.sleep(POLL_SECONDS)
            self._before, self._work = self._before + work.lost, None
        self._writer.close()  # a thread that never began has not

    def after_fork_in_child(self) -> None:
        """Write nothing more: the file is the parent's."""
        self._work = None
        self._writer.close()


class _Work:
    """What the thread does; it knows nothing of the log, so that one that nobody closes can go."""

    def __init__(self, writer: Writer) -> None:
        self.queue: SimpleQueue[Event | None] = SimpleQueue()  # its put may interrupt itself, as a handler does
        self.lost = 0
        self.done = False
        self._writer = writer
        self.thread = threading.Thread(target=self.run, name="smart-edge audit", daemon=True)

    def put(self, event: Event) -> None:
        if self.done or self.queue.qsize() >= _MOST_WAITING:
            self.lost += 1
        else:
            self.queue.put(event)

    def run(self) -> None:
        try:
            while self._write_waiting():
                pass
            self._end()
        finally:
            self._writer.close()
            self.done = True

    def _write_waiting(self) -> bool:
        """Write what waits, at least one event, and wait for the disk once; False at the end."""
        event = self.queue.get()
        waiting = self.queue.qsize()
        while event is not None:
            self._write(event)
            if not waiting:
                break
            waiting -= 1
            event = self.queue.get()
        try:
            self._writer.sync()
        except Exception as error:  # as below
            self._lose(error)
        return event is not None

    def _write(self, event: Event) -> None:
        try:
            details = event.fields.get("details")
            if callable(details):
                event = event._replace(fields={**event.fields, "details": _called(details)})
            self._writer.append(event)
        except Exception as error:  # a full disk, for one: serving goes on, and so does this thread
            self._lose(error)

    def _end(self) -> None:
        try:
            self._writer.seal(_event("seal", {}))
        except Exception as error:  # as above
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.lost += 1
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        self._writer.lose(1, why)
        if self.lost & (self.lost - 1) == 0:
            _log.warning("the audit log cannot be written (%s), %d lines so far; serving goes on", why, self.lost)


def _called(details: Any) -> object:
    try:
        return details()
    except Exception as error:  # a policy's own fault, which must not cost the line
        return {"status failed": type(error).__name__}


def _event(name: str, fields: dict[str, Any]) -> Event:
    return Event(name, time.time_ns(), time.monotonic(), fields)


def _at_exit() -> None:
    for log in list(_logs):
        log.close(_EXIT_SECONDS)


def _is_name(file: object) -> bool:
    if not isinstance(file, str | os.PathLike):
        return False
    try:
        name = os.fsencode(file)
    except UnicodeEncodeError:
        return False
    return isinstance(os.fspath(file), str) and name not in {b"", b"."} and b"\0" not in name
