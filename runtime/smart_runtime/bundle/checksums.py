"""``SHA256SUMS``: what it looks like, how it is written and how it is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from smart_runtime.bundle.files import MAX_FILE_BYTES, check_size, list_files, open_plain
from smart_runtime.bundle.manifest import is_inside
from smart_runtime.errors import BundleError

CHECKSUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
# Below malloc's 128 KiB, from which on freed memory teaches it to keep more of what is freed: see `SmartModel.load`.
_CHUNK_BYTES = 64 * 1024


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
    digest = hashlib.sha256()
    with open_plain(directory, name) as (file, size):
        check_size(name, size, max_bytes=max_bytes)
        left = size + 1  # one that grows while it is read has another checksum, and an end
        while piece := file.read(min(left, _CHUNK_BYTES)):
            digest.update(piece)
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
