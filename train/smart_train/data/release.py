"""Data sets as their authors publish them: which files, how large, in which folder or archive, from which page.

The files come from strangers. Their sizes are bounded before they are read, an archive is streamed and never unpacked
to the disk, and whatever a damaged file makes a reader trip over becomes one sentence.
"""

from __future__ import annotations

import gzip
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from smart_common.errors import SmartError
from smart_train.data.source import Advance, Arrays, Progress, Source
from smart_train.errors import DataError

_BLOCK = 2**20  # bytes read at a time, and a step of the bar: tarfile's 10 KiB would spend most of the time in Python


@dataclass(frozen=True)
class Release:
    """The files of one published data set.

    Attributes:
        title: its name, for messages.
        page: where its authors offer it.
        files: official file names, and the most bytes each may have.
        folder: the folder that they come in; None where they come one by one.
        archive: the .tar.gz that holds the folder; None where there is none.
        archive_bytes: the most bytes the archive may unpack to.
    """

    title: str
    page: str
    files: Mapping[str, int]
    folder: str | None = None
    archive: str | None = None
    archive_bytes: int = 0

    def find(self, data_dir: Path, *, kind: str, parse: Callable[[Files], Arrays]) -> Source:
        """Look for the folder in ``data_dir``, for the files in ``data_dir`` itself, then for the archive.

        Raises:
            DataError: if none of them is there, or only a part, and where to get it.
        """
        own = data_dir / self.folder if self.folder else data_dir
        for root in dict.fromkeys((own, data_dir)):
            if all((root / name).exists() for name in self.files):
                return self._source(root, tuple(root / name for name in self.files), kind=kind, parse=parse)
        archive = data_dir / self.archive if self.archive else None
        if archive is not None and archive.exists():
            return self._source(archive, (archive,), kind=kind, parse=parse)
        missing = [name for name in self.files if not (own / name).exists()]
        if len(missing) < len(self.files):
            raise self.damaged(own, f"no {', '.join(missing)}")
        looked_for = " or ".join(filter(None, (self.folder, self.archive))) or " and ".join(self.files)
        raise DataError(
            f"no {looked_for} in {data_dir}; get {self.title} from {self.page} or name its folder with --data-dir"
        )

    def _source(self, root: Path, files: tuple[Path, ...], *, kind: str, parse: Callable[[Files], Arrays]) -> Source:
        def read(progress: Progress) -> Arrays:
            with self.reading(root):
                return parse(Files(self, root, progress=progress))

        return Source(kind=kind, where=str(root), root=root, files=files, read=read)

    def damaged(self, where: object, why: str) -> DataError:
        """Return the error that says what is wrong with the files at ``where``."""
        return DataError(f"{where} is not {self.title} as published: {why}; get it again from {self.page}")

    @contextmanager
    def reading(self, where: object) -> Iterator[None]:
        """Turn whatever a damaged file makes a parser raise into one sentence."""
        try:
            yield
        except SmartError:
            raise
        except Exception as error:
            raise self.damaged(where, "a damaged or foreign file") from error


class Files:
    """The contents of a release's files, read from its folder, or all at once from its archive."""

    def __init__(self, release: Release, root: Path, *, progress: Progress) -> None:
        self.release = release
        self.root = root
        self._members = None if root.is_dir() else _members(release, root, progress=progress)

    def damaged(self, name: str, why: str) -> DataError:
        """Return the error that says what is wrong with the file ``name``."""
        return self.release.damaged(f"{name} of {self.root}", why)

    @contextmanager
    def content(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of the file ``name``; what fails on them is an error that names it."""
        with self.release.reading(f"{name} of {self.root}"):
            if self._members is not None:
                yield self._members.pop(name)  # a large file is let go once it is parsed
                return
            path = self.root / name
            if not path.is_file():
                raise self.damaged(name, "no regular file")
            limit = self.release.files[name]
            if path.stat().st_size > limit:
                raise self.damaged(name, f"more than {limit} bytes")
            with path.open("rb") as file:
                raw = file.read(limit)
            yield raw

    def labels(
        self, name: str, values: npt.NDArray[np.generic], *, images: int, first: int, classes: int
    ) -> npt.NDArray[np.int64]:
        """Check that there is one label an image, each from ``first`` on, and return them: int64 (N,).

        Raises:
            DataError: if their count is another, one is no whole number, or one is out of range.
        """
        if values.shape != (images,):
            raise self.damaged(name, f"labels of shape {values.shape} for {images} images")
        if values.dtype.kind not in "iuf" or not np.array_equal(np.floor(values), values):  # MATLAB's are often float64
            raise self.damaged(name, "labels that are not whole numbers")
        if images and not first <= values.min() <= values.max() < first + classes:
            raise self.damaged(
                name, f"labels from {values.min()} to {values.max()} instead of {first} to {first + classes - 1}"
            )
        return values.astype(np.int64)


class _Unpacked:
    """What a gzip file unpacks to, up to ``limit`` bytes: a small one can unpack to any size.

    ``advance`` is told of each `_BLOCK` of the packed file that reading has come to.
    """

    def __init__(self, packed: BinaryIO, *, limit: int, error: DataError, advance: Advance) -> None:
        self._packed, self._stream = packed, gzip.GzipFile(fileobj=packed, mode="rb")
        self._left, self._error = limit, error
        self._advance, self._done = advance, 0

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._left -= len(block)
        if self._left < 0:
            raise self._error
        done = _blocks(self._packed.tell())
        if done > self._done:
            self._advance(count=done - self._done)
            self._done = done
        return block


def _blocks(size: int) -> int:
    return -(-size // _BLOCK)


def _members(release: Release, archive: Path, *, progress: Progress) -> dict[str, bytes]:
    """Return the contents of the release's files in a .tar.gz, streamed from its first byte to its last."""
    found: dict[str, bytes] = {}
    too_large = release.damaged(archive, f"an archive of more than {release.archive_bytes} bytes")
    if not archive.is_file():
        raise release.damaged(archive, "no regular file")
    with (
        archive.open("rb") as packed,
        progress(f"reading {archive.name} (MiB)", total=_blocks(archive.stat().st_size)) as advance,
    ):
        stream = _Unpacked(packed, limit=release.archive_bytes, error=too_large, advance=advance)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as tar:  # type: ignore[call-overload]  # it only reads
            for member in tar:
                folder, name = posixpath.split(posixpath.normpath(member.name))
                if folder != release.folder or name not in release.files:
                    continue
                # A link would name a file of this machine, and a sparse member could claim any size.
                if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.issparse():
                    raise release.damaged(archive, f"{name} as a link or another special file")
                if name in found:
                    raise release.damaged(archive, f"{name} twice")
                if not 0 <= member.size <= release.files[name]:
                    raise release.damaged(archive, f"{name} of more than {release.files[name]} bytes")
                file = tar.extractfile(member)
                assert file is not None  # a regular file has content
                found[name] = file.read()
        while stream.read(_BLOCK):  # gzip's checksum stands at the very end
            pass
    missing = [name for name in release.files if name not in found]
    if missing:
        raise release.damaged(archive, f"no {', '.join(missing)}")
    return found
