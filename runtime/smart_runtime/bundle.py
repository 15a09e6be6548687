"""Open a bundle: what it holds is what ``SHA256SUMS`` names, and every byte that is used has been checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smart_runtime.checksums import CHECKSUMS, SIGNATURE, parse_checksums, sha256_of_file, write_checksums
from smart_runtime.errors import BundleError
from smart_runtime.files import list_files, read_bounded
from smart_runtime.manifest import MAX_BYTES, Manifest, parse_manifest

__all__ = ["CHECKSUMS", "MANIFEST", "SIGNATURE", "Bundle", "GraphBytes", "write_checksums"]

MANIFEST = "manifest.json"

_MAX_CHECKSUMS_BYTES = 1024 * 1024
_MAX_GRAPH_BYTES = 2**31 - 1  # what a protobuf file can hold
_MAX_WEIGHTS_BYTES = 16 * 2**30


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
class Bundle:
    """An open bundle: its manifest, checked; its other files are read and checked when asked for.

    ``digest`` is the SHA-256 of the bytes of ``SHA256SUMS``, so it stands for every byte of the bundle; ``sums`` are
    the checksums by file name.

        bundle = Bundle.open("bundle/")
        bundle.verify()                      # every byte is what was exported
        graph = bundle.graph_bytes("clean")
    """

    root: Path
    manifest: Manifest
    digest: str
    sums: Mapping[str, str] = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open the bundle in the directory ``path``.

        Reads ``SHA256SUMS`` and the manifest, and checks that the directory holds exactly the files that the checksums
        name. The graphs are not read yet: `graph_bytes` checks what it reads, `verify` checks all.

        Raises:
            BundleError: Not a bundle, a file missing, added or changed, a link, or a manifest of a newer format.
            OSError: The system cannot read a file.
        """
        root = Path(path)
        if not root.is_dir():
            what = "a file" if root.exists() else "nothing there"
            raise BundleError(f"expected a bundle directory at {str(root)!r}, got {what}; `smart-export` makes one")
        if not (root / CHECKSUMS).exists():
            raise BundleError(
                f"expected a bundle at {str(root)!r}, got a directory without {CHECKSUMS}; `smart-export` makes one"
            )
        checksums = read_bounded(root / CHECKSUMS, max_bytes=_MAX_CHECKSUMS_BYTES)
        sums = parse_checksums(checksums)
        _check_names(set(list_files(root)) - {CHECKSUMS, SIGNATURE}, named=set(sums))
        if MANIFEST not in sums:
            raise BundleError(f"expected {MANIFEST} in the bundle, got none; copy or export the bundle again")
        data = read_bounded(root / MANIFEST, max_bytes=MAX_BYTES)
        _check_sum(MANIFEST, hashlib.sha256(data).hexdigest(), expected=sums[MANIFEST])
        manifest = parse_manifest(data)
        for graph in manifest.graphs:
            for name in graph.files:
                if name not in sums:
                    raise BundleError(
                        f"expected {name!r} for {graph.name!r} in the bundle, got none; copy or export the bundle again"
                    )
        return cls(root=root, manifest=manifest, digest=hashlib.sha256(checksums).hexdigest(), sums=sums)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return the bytes of the file ``name``, read once and checked: no other bytes can take their place later.

        Raises:
            BundleError: The bundle does not name the file, or it is larger than ``max_bytes``, changed, gone or a link.
            OSError: The system cannot read it.
        """
        if name not in self.sums:
            raise BundleError(
                f"expected a file that {CHECKSUMS} names, got {name!r}; `smart-run info` lists the graphs"
            )
        data = read_bounded(self.root / name, max_bytes=max_bytes)
        _check_sum(name, hashlib.sha256(data).hexdigest(), expected=self.sums[name])
        return data

    def graph_bytes(self, name: str) -> GraphBytes:
        """Return the graph of the path ``name``, or of ``dense``, read once and checked.

        The caller owns the bytes and should drop them once the engine is made: they can be large.

        Raises:
            PathError: No graph is called that.
            BundleError: A file of the graph was changed, or is gone.
            OSError: The system cannot read a file.
        """
        graph = self.manifest.graph(name)
        model = self.read(graph.file, max_bytes=_MAX_GRAPH_BYTES)
        weights = None if graph.weights is None else self.read(graph.weights, max_bytes=_MAX_WEIGHTS_BYTES)
        return GraphBytes(model=model, weights=weights, weights_name=graph.weights_name)

    def verify(self, *, skip: Collection[str] = ()) -> None:
        """Check every file against ``SHA256SUMS``, in pieces, except those in ``skip`` that the caller reads anyway.

        Raises:
            BundleError: A file was changed, or is gone.
            OSError: The system cannot read a file.
        """
        for name, expected in self.sums.items():
            if name not in skip:
                _check_sum(name, sha256_of_file(self.root / name), expected=expected)


def _check_names(present: set[str], *, named: set[str]) -> None:
    if missing := sorted(named - present):
        raise BundleError(f"expected {missing[0]!r}, which {CHECKSUMS} names, got no such file; copy the bundle again")
    if extra := sorted(present - named):
        raise BundleError(f"expected only files that {CHECKSUMS} names, got {extra[0]!r} too; remove it")


def _check_sum(name: str, actual: str, *, expected: str) -> None:
    if actual != expected:
        raise BundleError(
            f"expected {name!r} as it was exported (SHA-256 {expected[:12]}...), got changed bytes ({actual[:12]}...); "
            "copy or export the bundle again"
        )
