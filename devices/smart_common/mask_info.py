"""The masks of a network's paths: how they were found, and what they have in common beside what chance would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

from smart_common.documents import Reader

Counted = Literal["channels", "weights"]


@dataclass(frozen=True)
class GroupOverlap:
    """Of one group of channels, or of one layer's single weights.

    Attributes:
        name: of the group or layer.
        size: how many channels or weights it has.
        kept: how many each path keeps, by path; one or more of each.
        both: how many every path keeps.
        either: how many any path keeps.
    """

    name: str
    size: int
    kept: Mapping[str, int]
    both: int
    either: int

    @property
    def value(self) -> float:
        """Kept by every path over kept by any, in [0, 1]: intersection over union."""
        return self.both / self.either

    @property
    def expected(self) -> tuple[float, float]:
        """What ``both`` and ``either`` are in the mean for independent random masks that keep as many."""
        shares = [kept / self.size for kept in self.kept.values()]
        return self.size * prod(shares), self.size * (1 - prod(1 - share for share in shares))

    @property
    def chance(self) -> float:
        """The ratio of the two expected counts, in [0, 1]: for two masks of density d that is d / (2 - d)."""
        both, either = self.expected
        return both / either


@dataclass(frozen=True)
class MaskOverlap:
    """Of all groups or layers of a network with several paths.

    Attributes:
        counted: what is in the groups.
        groups: in the order of the network; one or more.
    """

    counted: Counted
    groups: tuple[GroupOverlap, ...]

    @property
    def value(self) -> float:
        """As that of a group, over the sums of all."""
        return sum(group.both for group in self.groups) / sum(group.either for group in self.groups)

    @property
    def chance(self) -> float:
        """As that of a group, over the sums of all."""
        both, either = map(sum, zip(*(group.expected for group in self.groups), strict=True))
        return both / either

    def __str__(self) -> str:
        low, high = (choose(self.groups, key=lambda group: group.value) for choose in (min, max))
        spread = f", from {low.value:.1%} in {low.name} to {high.value:.1%} in {high.name}"
        return (
            f"the masks share {self.value:.1%} of the {self.counted} that any path keeps ({self.chance:.1%} by chance)"
            f"{spread if low.value < high.value else ''}"
        )

    def record(self) -> dict[str, Any]:
        """Return it as `read_overlap` reads it, with the values that follow from the counts."""
        groups = [
            {
                "name": group.name,
                "size": group.size,
                "kept": dict(group.kept),
                "both": group.both,
                "either": group.either,
                "overlap": group.value,
                "chance": group.chance,
            }
            for group in self.groups
        ]
        return {"counted": self.counted, "overlap": self.value, "chance": self.chance, "groups": groups}


def read_overlap(reader: Reader) -> MaskOverlap:
    """Return what `MaskOverlap.record` wrote; values are computed from the counts, which must fit each other."""
    counted: Counted = reader.choice("counted", get_args(Counted))
    groups = tuple(_group(one) for one in reader.objects("groups"))
    if not groups:
        raise reader.wrong("groups", "one group or more")
    return MaskOverlap(counted, groups)


def _group(reader: Reader) -> GroupOverlap:
    size = reader.integer("size", low=1)
    either = reader.integer("either", low=1, high=size)
    kept = reader.object("kept")
    if not kept.keys:
        raise reader.wrong("kept", "a count for each path")
    return GroupOverlap(
        name=reader.string("name"),
        size=size,
        kept={path: kept.integer(path, low=1, high=size) for path in kept.keys},
        both=reader.integer("both", low=0, high=either),
        either=either,
    )


@dataclass(frozen=True)
class MaskInfo:
    """How the masks of a network's paths were found, how much they leave, and what they have in common.

    Attributes:
        mode: the name of the way; None where nothing says it, and where nothing is masked.
        origin: who that is by, for people who compare with a paper; likewise.
        budget: how groups or layers share the density.
        union_density: the parameters that any path uses over those of the unmasked network; above 1 where paths have
            weights of their own.
        overlap: None of a single path, and where nothing is masked.
    """

    mode: str | None
    origin: str | None
    budget: str | None
    union_density: float | None
    overlap: MaskOverlap | None

    def record(self) -> dict[str, Any]:
        """Return it as `read_mask_info` reads it."""
        return {
            "mode": self.mode,
            "origin": self.origin,
            "budget": self.budget,
            "union_density": self.union_density,
            "overlap": None if self.overlap is None else self.overlap.record(),
        }

    def lines(self) -> Iterator[str]:
        """Yield it for people: by whom the masks are, then what the paths use together and have in common."""
        if self.mode is not None:
            budget = "" if self.budget is None else f" (budget {self.budget})"
            yield f"masks {self.mode}{budget}{'' if self.origin is None else f': {self.origin}'}"
        stored = self.union_density
        parts = [
            *([] if stored is None else [f"all paths together use {stored:.1%} of the unmasked network's parameters"]),
            *([] if self.overlap is None else [str(self.overlap)]),
        ]
        if parts:
            yield "; ".join(parts)


def read_mask_info(reader: Reader) -> MaskInfo:
    """Return what `MaskInfo.record` wrote; raises what the reader raises for anything else."""
    overlap = reader.object_or_none("overlap")
    return MaskInfo(
        mode=reader.optional_string("mode"),
        origin=reader.optional_string("origin"),
        budget=reader.optional_string("budget"),
        union_density=reader.optional_number("union_density"),
        overlap=None if overlap is None else read_overlap(overlap),
    )
