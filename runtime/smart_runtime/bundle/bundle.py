"""Open a bundle: what it holds is what ``SHA256SUMS`` names, and every byte that is used has been checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from smart_runtime.bundle.checksums import (
    CHECKSUMS,
    SIGNATURE,
    check_sum,
    parse_checksums,
    sha256_of_file,
    write_checksums,
)
from smart_runtime.bundle.files import MAX_FILE_BYTES, list_files, open_plain, read_at_most, read_bounded
from smart_runtime.bundle.graphs import GraphBytes, HeldGraph, max_bytes_of
from smart_runtime.bundle.manifest import MAX_BYTES, Manifest, parse_manifest
from smart_runtime.bundle.signatures import SIGNATURE_BYTES, PublicKey, load_public_key
from smart_runtime.errors import BundleError, SignatureError

__all__ = ["CHECKSUMS", "MANIFEST", "SIGNATURE", "Bundle", "GraphBytes", "HeldGraph", "write_checksums"]

MANIFEST = "manifest.json"

MAX_CHECKSUMS_BYTES = 1024 * 1024


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
            BundleError: Not a bundle, a file missing, added or changed, a link, or a manifest of a newer format.
            SignatureError: No signature by the key ``trust``, or no such key.
            MissingExtraError: The library that checks signatures is not installed.
            OSError: The system cannot read a file.
        """
        key = load_public_key(trust) if isinstance(trust, str | os.PathLike) else trust
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
            raise BundleError(
                f"expected a file that {CHECKSUMS} names, got {name!r}; `smart-run info` lists the graphs"
            )
        data = read_bounded(self.root, name, max_bytes=max_bytes)
        check_sum(name, hashlib.sha256(data).hexdigest(), expected=self.sums[name])
        return data

    def hold(self, name: str) -> HeldGraph:
        """Return the files of the path ``name``, or of ``dense``, held open for the caller to close.

        They are read and checked later, `HeldGraph.read`, however often, and even if the bundle is gone by then.

        Raises:
            PathError: No graph is called that.
            BundleError: A file of the graph is gone, a link or too large.
            OSError: The system cannot open a file.
        """
        return HeldGraph(self.root, self.manifest.graph(name), sums=self.sums)

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


def _read_signature(root: Path) -> bytes:
    """Return the signature's bytes, one more than a signature has if there are more."""
    if not os.path.lexists(root / SIGNATURE):
        raise SignatureError(
            f"no signature in {SIGNATURE}, though a key to trust was given; "
            "get the signed bundle, or leave the key out to open it unsigned"
        )
    with open_plain(root, SIGNATURE) as (file, _):
        return read_at_most(file, SIGNATURE_BYTES + 1)


def _check_names(present: set[str], *, named: set[str]) -> None:
    if missing := sorted(named - present):
        raise BundleError(f"no {missing[0]!r}, which {CHECKSUMS} names; copy the bundle again")
    if extra := sorted(present - named):
        raise BundleError(f"expected only files that {CHECKSUMS} names, got {extra[0]!r} too; remove it")
