"""A bundle's graph: its files held open, and read and checked from there."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from smart_runtime.bundle.checksums import check_sum
from smart_runtime.bundle.files import MAX_FILE_BYTES, check_size, open_held, read_at_most
from smart_runtime.bundle.manifest import GraphInfo
from smart_runtime.errors import ClosedError

MAX_GRAPH_BYTES = 2**31 - 1
"""What a protobuf file can hold."""

MAX_BARE_GRAPH_BYTES = 2**26
"""Of a graph whose weights lie in a file of their own: that of ResNet-34 has 116 KB."""


@dataclass(frozen=True, kw_only=True)
class GraphBytes:
    """One graph, checked and in memory: what an engine is made from.

    ``model`` is an ONNX file; ``weights`` is the file that its external tensors call ``weights_name``, both None for a
    graph without external tensors.
    """

    model: bytes = field(repr=False)
    weights: bytes | None = field(repr=False)
    weights_name: str | None


@dataclass(frozen=True, kw_only=True)
class _HeldFile:
    name: str
    file: BinaryIO
    size: int
    sha256: str


class HeldGraph:
    """The files of one graph, held open: they can be read after the bundle was replaced or removed.

        with bundle.hold("robust") as held:
            ...                         # the directory may go
            graph = held.read()

    Safe to use from several threads at once. ``bytes`` is the size of the files together.
    """

    def __init__(self, root: Path, graph: GraphInfo, *, sums: Mapping[str, str]) -> None:
        """Use `Bundle.hold`; this takes what it knows."""
        self._weights_name = graph.weights_name
        # Orders reads and close: a closed descriptor's number may be another file's. Re-entrant for signal handlers.
        self._lock = threading.RLock()
        files = []
        with ExitStack() as undo:
            for name in graph.files:
                file, size = open_held(root, name)
                undo.callback(file.close)
                check_size(name, size, max_bytes=max_bytes_of(graph, name))
                files.append(_HeldFile(name=name, file=file, size=size, sha256=sums[name]))
            undo.pop_all()
        self._files: tuple[_HeldFile, ...] | None = tuple(files)
        self.bytes = sum(held.size for held in files)

    def read(self) -> GraphBytes:
        """Return the graph, read and checked now: the bytes that are checked are those that are returned.

        The caller owns the bytes and should drop them once the engine is made: they can be large.

        Raises:
            BundleError: A file was overwritten in its place.
            ClosedError: The graph was closed.
            OSError: The system cannot read a file.
        """
        with ExitStack() as own:
            with self._lock:
                if self._files is None:
                    raise ClosedError("the graph is closed; open the bundle again")
                files = [
                    (held, own.enter_context(os.fdopen(os.dup(held.file.fileno()), "rb", buffering=0)))
                    for held in self._files
                ]
            contents = [_read(held, file) for held, file in files]
        return GraphBytes(
            model=contents[0],
            weights=contents[1] if len(contents) > 1 else None,
            weights_name=self._weights_name,
        )

    def close(self) -> None:
        """Let the files go; reads in flight finish, later ones raise ClosedError. May be called again."""
        with self._lock:
            files, self._files = self._files, None
            for held in files or ():
                held.file.close()

    def __enter__(self) -> HeldGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def max_bytes_of(graph: GraphInfo, name: str) -> int:
    """Return how large the file ``name`` of ``graph`` may be."""
    if name != graph.file:
        return MAX_FILE_BYTES
    return MAX_GRAPH_BYTES if graph.weights is None else MAX_BARE_GRAPH_BYTES


def _read(held: _HeldFile, file: BinaryIO) -> bytes:
    data = read_at_most(file, held.size + 1)  # one more than it had: a file that grew has another checksum
    check_sum(held.name, hashlib.sha256(data).hexdigest(), expected=held.sha256)
    return data
