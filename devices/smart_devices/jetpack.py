"""What each JetPack release installs: one table for all boards, ``profiles/shared/jetpack.json``.

A hint for planning, since only the board knows what it runs.

    jetpack_of("36.4.7")        # JetPackVersion(version='6.2.1', source='table')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from smart_common.documents import Reader, parse_json

SHARED = Path(__file__).with_name("profiles") / "shared"
"""What many devices share."""

MIN_OPSET, MAX_OPSET = 9, 30
"""The versions of ONNX's operator set that anything here reads."""


@dataclass(frozen=True)
class JetPack:
    """What a group of JetPack releases installs.

    Attributes:
        releases: JetPack releases, oldest first, each with the L4T releases it is made of.
        socs: The systems on chip that the releases are for, as the device tree calls them.
        ubuntu: Version of Ubuntu.
        python: Minor version of the system's Python.
        cuda: Version of CUDA.
        tensorrt: Version of TensorRT.
        onnx_opset: The newest opset that this TensorRT's ONNX parser documents, ``None`` while unverified.
        source: Where all of it was read.
    """

    releases: Mapping[str, tuple[str, ...]]
    socs: tuple[str, ...]
    ubuntu: str | None
    python: str | None
    cuda: str | None
    tensorrt: str | None
    onnx_opset: int | None
    source: str

    @property
    def versions(self) -> tuple[str, ...]:
        """The JetPack releases."""
        return tuple(self.releases)

    @property
    def l4t(self) -> tuple[str, ...]:
        """The L4T releases they are made of."""
        return tuple(release for group in self.releases.values() for release in group)


@dataclass(frozen=True)
class JetPackVersion:
    """A board's JetPack release and how it is known.

    Attributes:
        version: The release, as in ``6.2.1``.
        source: ``dpkg`` when its package is installed, ``table`` when its L4T release belongs to it, ``nearest`` when
            only a neighbour of its L4T release is known: then it is approximate.
    """

    version: str
    source: Literal["dpkg", "table", "nearest"]

    def __str__(self) -> str:
        """Return the version for people: ``6.2.1``, ``6.2.1 (approximate)``."""
        return f"{self.version} (approximate)" if self.source == "nearest" else self.version


def parse_jetpack(row: Reader) -> JetPack:
    """Return a row of the table; raises what ``row`` does."""
    row.exactly(*JetPack.__dataclass_fields__)
    releases = row.object("releases")
    groups = {version: releases.strings(version) for version in releases.keys}
    if not groups or not all(_numbers(release) for group in groups.values() for release in group):
        raise row.wrong("releases", 'L4T releases like "36.4.3" for each JetPack release')
    return JetPack(
        releases=groups,
        socs=row.strings("socs"),
        ubuntu=row.optional_string("ubuntu"),
        python=row.optional_string("python"),
        cuda=row.optional_string("cuda"),
        tensorrt=row.optional_string("tensorrt"),
        onnx_opset=row.optional_integer("onnx_opset", low=MIN_OPSET, high=MAX_OPSET),
        source=row.string("source"),
    )


@lru_cache(maxsize=1)
def jetpack_table() -> tuple[JetPack, ...]:
    """Return every row of the table, oldest first."""

    def damaged(what: str) -> ValueError:
        return ValueError(f"shared/jetpack.json: {what}")

    rows = parse_json(SHARED.joinpath("jetpack.json").read_bytes(), damaged=damaged)
    return tuple(parse_jetpack(Reader(row, where=f"[{i}]", damaged=damaged)) for i, row in enumerate(rows))


def jetpack_of(l4t: str) -> JetPackVersion | None:
    """Return the JetPack release that the L4T release ``l4t`` (``36.4.7``) belongs to.

    An unknown patch of a known minor release counts as the nearest known patch, marked as such.
    """
    wanted = _numbers(l4t)
    if not wanted:
        return None
    known = [
        (_numbers(release), version)
        for row in jetpack_table()
        for version, group in row.releases.items()
        for release in group
    ]
    near = [(abs(numbers[2] - wanted[2]), numbers, version) for numbers, version in known if numbers[:2] == wanted[:2]]
    if not near:
        return None
    distance, _, version = min(near)
    return JetPackVersion(version=version, source="nearest" if distance else "table")


def _numbers(release: str) -> tuple[int, ...]:
    """Return the three numbers of an L4T release, none when it is written otherwise."""
    parts = release.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        return ()
    return tuple(map(int, parts))
