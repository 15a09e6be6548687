"""What masks may remove, and how much of it: the names of structures, read once into values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

from smart_devices import Target
from smart_train.choices import SCOPES, STRUCTURES, Scope
from smart_train.errors import ConfigError

_MAX_M = 16
_HALF = 0.5
_NAME = re.compile(r"(?P<channels>channel)?(?P<plus>\+)?(?:(?P<n>[1-9][0-9]?):(?P<m>[1-9][0-9]?))?")


@dataclass(frozen=True)
class Pattern:
    """Of every ``m`` consecutive input channels ``n`` weights stay, for each filter and kernel position.

    With 2:4 this is what sparse tensor cores and TensorRT want (TensorRT developer guide, "Structured Sparsity": "for
    each output channel and for each spatial pixel in the kernel weights, every four input channels must have at least
    two zeros"; arXiv 2104.08378).
    """

    n: int
    m: int


TWO_FOUR = Pattern(2, 4)
"""The one pattern that sparse tensor cores have."""


@dataclass(frozen=True)
class Removal:
    """What a structure's name means.

    Attributes:
        channels: whole channels go, group by group.
        pattern: single weights go, so many of each block; None where they do not.
        anywhere: single weights go, wherever they are.
    """

    channels: bool
    pattern: Pattern | None = None
    anywhere: bool = False

    @property
    def weights(self) -> bool:
        """Whether single weights go."""
        return self.anywhere or self.pattern is not None

    @property
    def own_density(self) -> float | None:
        """The density that follows from the name alone: N/M of ``N:M``."""
        return None if self.channels or self.pattern is None else self.pattern.n / self.pattern.m


def parse_structure(name: str) -> Removal:
    """Read ``channel``, ``N:M`` with 1 <= N < M <= 16, ``channel+N:M`` or ``unstructured``.

    Raises:
        ConfigError: if it is none of these.
    """
    if name == "unstructured":
        return Removal(channels=False, anywhere=True)
    found = _NAME.fullmatch(name)
    if found is not None:
        channels, plus, n, m = found["channels"] is not None, found["plus"] is not None, found["n"], found["m"]
        if n is None and channels and not plus:
            return Removal(channels=True)
        if n is not None and plus == channels and 1 <= int(n) < int(m) <= _MAX_M:
            return Removal(channels=channels, pattern=Pattern(int(n), int(m)))
    raise ConfigError(
        f"expected a structure out of {STRUCTURES}, with N below M and M up to {_MAX_M}, got {name!a:.100}; use channel"
    )


def why_pattern_is_slow(pattern: Pattern, *, target: Target) -> str | None:
    """Return why zeros in ``pattern`` make no layer of any network faster on ``target``; None where they may."""
    cores = target.profile.sparse_tensor_cores.value
    if not cores:
        known = "has no sparse tensor cores" if cores is False else "is not known to have sparse tensor cores"
        return f"{target.name} {known}"
    if pattern != TWO_FOUR:
        return f"sparse tensor cores know {TWO_FOUR.n}:{TWO_FOUR.m} only, not {pattern.n}:{pattern.m}"
    return None


def default_density(name: str) -> float:
    """Return the density of a structure when none is asked for: N/M of ``N:M``, a half of the others.

    Raises:
        ConfigError: if there is no such structure.
    """
    own = parse_structure(name).own_density
    return _HALF if own is None else own


@dataclass(frozen=True)
class Structure:
    """What masks may remove, and how much.

    Attributes:
        name: ``channel``, ``N:M``, ``channel+N:M`` or ``unstructured``.
        density: in (0, 1], what a path keeps: of each group's channels (``channel`` and ``channel+N:M``), or of each
            masked layer's weights; N/M by definition for ``N:M``. Every layer has the same one: that is exact, and no
            layer starves, as layers may where one budget is shared out among them.
        align: kept channels are rounded up to a multiple of this (never beyond the group).
        scope: which groups are masked where channels are.
        min_channels: layers with fewer input or output channels keep all weights in ``N:M``: a device gains nothing.

    Raises:
        ConfigError: if a value is out of range or does not fit the name.
    """

    name: str = "channel"
    density: float = _HALF
    align: int = 8
    scope: Scope = "block"
    min_channels: int = 1

    def __post_init__(self) -> None:
        pattern, own = self.removes.pattern, self.removes.own_density  # an unknown name is refused first
        if not 0 < self.density <= 1:
            raise ConfigError(f"expected density in (0, 1], got {self.density}; 0.5 keeps half of each group")
        if own is not None and self.density != own:
            raise ConfigError(
                f"expected density {own:g}, which {self.name} is, got {self.density}; leave the density out, or use "
                f"channel+{self.name} to remove channels too"
            )
        if self.align < 1:
            raise ConfigError(f"expected align of 1 or more, got {self.align}; 8 suits most devices")
        if pattern is not None and self.removes.channels and self.align % pattern.m:
            raise ConfigError(
                f"expected align that is a multiple of {pattern.m} for {self.name}, got {self.align}; "
                f"{math.lcm(self.align, pattern.m)} leaves whole blocks in each group"
            )
        if self.scope not in SCOPES:
            raise ConfigError(f"expected scope {' or '.join(SCOPES)}, got {self.scope!r}; use block")
        if self.min_channels < 1:
            raise ConfigError(f"expected min_channels of 1 or more, got {self.min_channels}; 1 leaves no layer out")

    @cached_property
    def removes(self) -> Removal:
        """What the name means."""
        return parse_structure(self.name)

    def kept(self, size: int, *, bundle: int = 1) -> int:
        """Return how many of a group's ``size`` a path keeps: at least one aligned step, so no group becomes empty.

        Args:
            size: of the group.
            bundle: how many channels each of its ``size`` stands for (:attr:`smart_train.masking.groups.Group.bundle`).
        """
        if not self.removes.channels:
            return size
        step = self.align // math.gcd(self.align, bundle)
        wanted = math.ceil(self.density * size - 1e-9)  # 0.1 * 480 is 48.000000000000004
        return min(size, math.ceil(max(wanted, 1) / step) * step)

    def kept_weights(self, count: int) -> int:
        """Return how many of a masked layer's ``count`` weights in kept input channels a path keeps, at least one.

        With a pattern ``count`` is a multiple of its M.
        """
        pattern = self.removes.pattern
        if pattern is not None:
            return count // pattern.m * pattern.n
        return max(1, math.ceil(self.density * count - 1e-9)) if self.removes.anywhere else count
