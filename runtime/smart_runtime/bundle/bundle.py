"""A bundle: what it holds is what ``SHA256SUMS`` names, and every byte that is used has been checked."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from smart_runtime.bundle.files import (
    MAX_FILE_BYTES,
    check_size,
    list_files,
    open_plain,
    read_at_most,
    read_bounded,
)
from smart_runtime.bundle.graph_bytes import GraphBytes, GraphIdentity
from smart_runtime.bundle.manifest import MAX_BYTES, GraphInfo, Manifest, parse_manifest
from smart_runtime.bundle.package import is_inside
from smart_runtime.bundle.signatures import SIGNATURE_BYTES, PublicKey, public_key
from smart_runtime.errors import BundleError, ClosedError, SignatureError

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"

MAX_CHECKSUMS_BYTES = 1024 * 1024

MAX_GRAPH_BYTES = 2**31 - 1
"""What a protobuf file can hold."""

MAX_BARE_GRAPH_BYTES = 2**26
"""Of a graph whose weights lie in a file of their own: that of ResNet-34 has 116 KB."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
# Below malloc's 128 KiB, from which on freed memory teaches it to keep more of what is freed: see `SmartModel.load`.
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class _HeldFile:
    name: str
    file: BinaryIO
    size: int
    sha256: str


class HeldGraph(AbstractContextManager["HeldGraph"]):
    """The files of one graph, held open: they can be read after the bundle was replaced or removed.

        with bundle.hold("robust") as held:
            ...                         # the directory may go
            graph = held.read()

    Safe to use from several threads at once. ``bytes`` is the size of the graph's own files together; those of what it
    answered at export are held too, for `read_file`.
    """

    def __init__(self, root: Path, graph: GraphInfo, *, manifest: Manifest, sums: Mapping[str, str]) -> None:
        """Use `Bundle.hold`; this takes what it knows."""
        self._graph, self._manifest = graph, manifest
        # Orders reads and close: a closed descriptor's number may be another file's. Re-entrant for signal handlers.
        self._lock = threading.RLock()
        files = []
        with ExitStack() as undo:
            for name in (*graph.files, *filter(sums.__contains__, manifest.reference_files(graph.name))):
                file, size = open_plain(root, name)
                undo.callback(file.close)
                check_size(name, size, max_bytes=max_bytes_of(graph, name))
                files.append(_HeldFile(name=name, file=file, size=size, sha256=sums[name]))
            undo.pop_all()
        self._files: tuple[_HeldFile, ...] | None = tuple(files)
        self.bytes = sum(held.size for held in files[: len(graph.files)])

    def read(self) -> GraphBytes:
        """Return the graph, read and checked now: the bytes that are checked are those that are returned.

        The caller owns the bytes and should drop them once the engine is made: they can be large.

        Raises:
            BundleError: A file was overwritten in its place.
            ClosedError: The graph was closed.
            OSError: The system cannot read a file.
        """
        with self._own_files() as files:
            contents = [_read(held, file) for held, file in files[: len(self._graph.files)]]
        return GraphBytes.of(self._graph, contents, manifest=self._manifest)

    def read_file(self, name: str, *, max_bytes: int) -> bytes:
        """Return the bytes of one of the files, as `Bundle.read` does, whose errors it has too."""
        with self._own_files() as files:
            for held, file in files:
                if held.name == name:
                    check_size(name, held.size, max_bytes=max_bytes)
                    return _read(held, file)
        raise _unnamed(name)

    def verify(self) -> None:
        """Check the graph's own files now, in pieces; errors are those of `read`."""
        with self._own_files() as files:
            for held, file in files[: len(self._graph.files)]:
                check_sum(held.name, _sha256(file, size=held.size), expected=held.sha256)

    @contextmanager
    def _own_files(self) -> Iterator[Sequence[tuple[_HeldFile, BinaryIO]]]:
        """Yield descriptors of this call's own, which a `close` on another thread leaves open."""
        with ExitStack() as own:
            with self._lock:
                if self._files is None:
                    raise ClosedError("the graph is closed; open the bundle again")
                files = [
                    (held, own.enter_context(os.fdopen(os.dup(held.file.fileno()), "rb", buffering=0)))
                    for held in self._files
                ]
            yield files

    def close(self) -> None:
        """Let the files go; reads in flight finish, later ones raise ClosedError. May be called again."""
        with self._lock:
            files, self._files = self._files, None
            for held in files or ():
                held.file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An open bundle: its manifest, checked; its other files are read and checked when asked for.

    ``digest`` is the SHA-256 of the bytes of ``SHA256SUMS``, so it stands for every byte of the bundle; ``sums`` are
    the checksums by file name. ``signed`` says whether a signature lies in it, ``signer`` whose it is: the fingerprint
    of the trusted key, None where none was given and so nothing was looked at.

        bundle = Bundle.open("bundle/", trust="release.pub")
        bundle.verify()                      # every byte is what was exported
        graph = bundle.graph_bytes("clean")
    """

    root: Path
    manifest: Manifest
    digest: str
    sums: Mapping[str, str]
    signed: bool
    signer: str | None

    def __repr__(self) -> str:
        paths = ", ".join(self.manifest.paths)
        return (
            f"Bundle({self.manifest.package_name} at {str(self.root)!r}, paths {paths}, digest {self.digest[:12]}...)"
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, trust: str | os.PathLike[str] | PublicKey | None = None) -> Bundle:
        """Open the bundle in the directory ``path``.

        Reads ``SHA256SUMS`` and the manifest, and checks that the directory holds exactly the files that the checksums
        name. The graphs are not read yet: `graph_bytes` checks what it reads, `verify` checks all.

        Args:
            path: The directory.
            trust: An Ed25519 public key, or its PEM file: only a bundle with its signature is opened, and nothing of
                another one is parsed. Without it a signature is not looked at, and the checksums protect against
                accidents only: who changes a file can make them anew.

        Raises:
            BundleError: Not a bundle, a file missing, added or changed, a link, a manifest of a newer format, or one
                graph under two roles.
            SignatureError: No signature by the key ``trust``, or no such key.
            MissingExtraError: The library that checks signatures is not installed.
            OSError: The system cannot read a file.
        """
        key = public_key(trust)
        root = Path(path)
        if not root.is_dir():
            raise BundleError(f"no bundle directory at {str(root)!r}; `smart-export` makes one")
        if not (root / CHECKSUMS).exists():
            raise BundleError(f"the directory {str(root)!r} is no bundle: no {CHECKSUMS}; `smart-export` makes one")
        checksums = read_bounded(root, CHECKSUMS, max_bytes=MAX_CHECKSUMS_BYTES)
        if key is not None:
            key.check(_read_signature(root), checksums, name=SIGNATURE)
        sums = parse_checksums(checksums)
        present = set(list_files(root))
        _check_names(present - {CHECKSUMS, SIGNATURE}, named=set(sums))
        if MANIFEST not in sums:
            raise BundleError(f"no {MANIFEST} in the bundle; copy or export the bundle again")
        data = read_bounded(root, MANIFEST, max_bytes=MAX_BYTES)
        check_sum(MANIFEST, hashlib.sha256(data).hexdigest(), expected=sums[MANIFEST])
        manifest = parse_manifest(data)
        for graph in manifest.graphs:
            for name in graph.files:
                if name not in sums:
                    raise BundleError(f"no {name!r} for {graph.name!r} in the bundle; copy or export the bundle again")
        _check_apart(manifest, sums)
        return cls(
            root=root,
            manifest=manifest,
            digest=hashlib.sha256(checksums).hexdigest(),
            sums=sums,
            signed=SIGNATURE in present,
            signer=None if key is None else key.fingerprint,
        )

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return the bytes of the file ``name``, read once and checked: no other bytes can take their place later.

        Raises:
            BundleError: The bundle does not name the file, or it is larger than ``max_bytes``, changed, gone or a link.
            OSError: The system cannot read it.
        """
        if name not in self.sums:
            raise _unnamed(name)
        data = read_bounded(self.root, name, max_bytes=max_bytes)
        check_sum(name, hashlib.sha256(data).hexdigest(), expected=self.sums[name])
        return data

    def identity(self, name: str) -> GraphIdentity:
        """Return what tells the graph of the path ``name``, or of ``dense``, from all others; PathError, if none is."""
        graph = self.manifest.graph(name)
        sums = [self.sums[file] for file in graph.files]
        return GraphIdentity(
            digests=(sums[0], sums[1] if sums[1:] else None),
            precision=self.manifest.precision,
            recipe=self.manifest.recipe,
            two_four=graph.two_four,
        )

    def hold(self, name: str) -> HeldGraph:
        """Return the files of the path ``name``, or of ``dense``, held open for the caller to close.

        They are read and checked later, `HeldGraph.read`, however often, and even if the bundle is gone by then.

        Raises:
            PathError: No graph is called that.
            BundleError: A file of the graph is gone, a link or too large.
            OSError: The system cannot open a file.
        """
        return HeldGraph(self.root, self.manifest.graph(name), manifest=self.manifest, sums=self.sums)

    def graph_bytes(self, name: str) -> GraphBytes:
        """Return the graph of the path ``name``, or of ``dense``, read once and checked.

        The caller owns the bytes and should drop them once the engine is made: they can be large.

        Raises:
            PathError: No graph is called that.
            BundleError: A file of the graph was changed, or is gone.
            OSError: The system cannot read a file.
        """
        with self.hold(name) as held:
            return held.read()

    def verify(self, *, skip: Collection[str] = ()) -> None:
        """Check every file against ``SHA256SUMS``, in pieces, except those in ``skip`` that the caller reads anyway.

        Raises:
            BundleError: A file was changed, or is gone.
            OSError: The system cannot read a file.
        """
        bounds = {MANIFEST: MAX_BYTES} | {
            name: max_bytes_of(graph, name) for graph in self.manifest.graphs for name in graph.files
        }
        for name, expected in self.sums.items():
            if name not in skip:
                actual = sha256_of_file(self.root, name, max_bytes=bounds.get(name, MAX_FILE_BYTES))
                check_sum(name, actual, expected=expected)


def _unnamed(name: str) -> BundleError:
    return BundleError(f"expected a file that {CHECKSUMS} names, got {name!r}; `smart-run info` lists the graphs")


def _read_signature(root: Path) -> bytes:
    """Return the signature's bytes, one more than a signature has if there are more."""
    if not os.path.lexists(root / SIGNATURE):
        raise SignatureError(
            f"no signature in {SIGNATURE}, though a key to trust was given; "
            "get the signed bundle, or leave the key out to open it unsigned"
        )
    with open_plain(root, SIGNATURE)[0] as file:
        return read_at_most(file, SIGNATURE_BYTES + 1)


def _check_names(present: set[str], *, named: set[str]) -> None:
    if missing := sorted(named - present):
        raise BundleError(f"no {missing[0]!r}, which {CHECKSUMS} names; copy the bundle again")
    if extra := sorted(present - named):
        raise BundleError(f"expected only files that {CHECKSUMS} names, got {extra[0]!r} too; remove it")


def _check_apart(manifest: Manifest, sums: Mapping[str, str]) -> None:
    """Check that no graph stands under two roles, unless the manifest says so, by naming one file for both."""
    known: dict[str, GraphInfo] = {}
    for graph in manifest.paths.values():
        first = known.setdefault("".join(sums[name] for name in graph.files), graph)
        if first.role != graph.role and first.file != graph.file:
            raise BundleError(
                f"{graph.file!r} of the path {graph.name!r} is a copy of {first.file!r} of the path {first.name!r}, "
                f"and nothing says that the two are one; export the bundle again"
            )


def max_bytes_of(graph: GraphInfo, name: str) -> int:
    """Return how large the file ``name`` of ``graph`` may be."""
    if name != graph.file:
        return MAX_FILE_BYTES
    return MAX_GRAPH_BYTES if graph.weights is None else MAX_BARE_GRAPH_BYTES


def _read(held: _HeldFile, file: BinaryIO) -> bytes:
    data = read_at_most(file, held.size + 1)  # one more than it had: a file that grew has another checksum
    check_sum(held.name, hashlib.sha256(data).hexdigest(), expected=held.sha256)
    return data


def write_checksums(directory: Path) -> None:
    """Write ``SHA256SUMS`` over all files of ``directory`` except itself and its signature, sorted by name.

    ``sha256sum --check SHA256SUMS`` reads it too.

    Raises:
        BundleError: A link or special file, or a name or size that the format cannot hold, lies in the directory.
        OSError: A file cannot be read, or the checksums cannot be written.
    """
    names = [name for name in list_files(directory) if name not in {CHECKSUMS, SIGNATURE}]
    for name in names:
        if not is_inside(name):
            raise BundleError(f"expected plain file names in a bundle, got {name!r}; rename the file")
    lines = [f"{sha256_of_file(directory, name, max_bytes=MAX_FILE_BYTES)}  {name}\n" for name in names]
    (directory / CHECKSUMS).write_bytes("".join(lines).encode("utf-8"))


def parse_checksums(data: bytes) -> Mapping[str, str]:
    """Return the lower-case hex SHA-256 of each file name in the bytes of a ``SHA256SUMS``.

    Raises:
        BundleError: A line is not what `write_checksums` writes, or the lines are not sorted and unique.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged("text in UTF-8", "other bytes") from error
    if not text.endswith("\n"):
        raise _damaged("a line end after the last line", "none")
    sums: dict[str, str] = {}
    previous = ""
    for number, line in enumerate(text[:-1].split("\n"), start=1):
        match = _LINE.fullmatch(line)
        if match is None or not is_inside(match[2]) or match[2] in {CHECKSUMS, SIGNATURE}:
            raise _damaged("64 lower-case hex digits, two spaces and a file of the bundle", f"another line {number}")
        if match[2] <= previous:
            raise _damaged("names sorted, each once", f"{match[2]!r} in line {number}")
        previous = match[2]
        sums[previous] = match[1]
    return MappingProxyType(sums)


def sha256_of_file(directory: Path, name: str, *, max_bytes: int) -> str:
    """Return the lower-case hex SHA-256 of a plain file, read in pieces so that a large one fits in memory.

    Raises:
        BundleError: It does not exist, is or lies behind a link, or is larger than ``max_bytes``.
        OSError: The system cannot read it.
    """
    file, size = open_plain(directory, name)
    with file:
        check_size(name, size, max_bytes=max_bytes)
        return _sha256(file, size=size)


def _sha256(file: BinaryIO, *, size: int) -> str:
    """Return the checksum of a file that had ``size`` bytes; its position is not used or moved."""
    digest, offset = hashlib.sha256(), 0
    left = size + 1  # one that grows while it is read has another checksum, and an end
    while piece := os.pread(file.fileno(), min(left, _CHUNK_BYTES), offset):
        digest.update(piece)
        offset += len(piece)
        left -= len(piece)
    return digest.hexdigest()


def check_sum(name: str, actual: str, *, expected: str) -> None:
    """Raise BundleError unless the checksums ``actual`` and ``expected`` are the same."""
    if actual != expected:
        raise BundleError(
            f"expected {name!r} as it was exported (SHA-256 {expected[:12]}...), got changed bytes ({actual[:12]}...); "
            "copy or export the bundle again"
        )


def _damaged(expected: str, got: str) -> BundleError:
    return BundleError(f"{CHECKSUMS} is damaged: expected {expected}, got {got}; copy or export the bundle again")
