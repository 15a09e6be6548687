"""What masks may remove, and how much of it: the names of structures, read once into values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from smart_common.lazy import load
from smart_devices import Target
from smart_train.choices import BUDGETS, MAX_INTEGER, SCOPES, Budget, Scope
from smart_train.errors import ConfigError
from smart_train.masking.n_of_m import MAX_M
from smart_train.masking.pattern import WeightPattern
from smart_train.masking.pattern_rows import PATTERNS, structure_names

_HALF = 0.5


@dataclass(frozen=True)
class Pattern:
    """What masks remove: whole channels, single weights in a pattern of their own, or both.

    Attributes:
        channels: whether whole channels go, group by group.
        weights: which single weights go; None where none do.
    """

    channels: bool
    weights: WeightPattern | None = None

    @property
    def own_density(self) -> float | None:
        """The density that follows from the name alone: N/M of ``N:M``; None where the user chooses."""
        return None if self.channels or self.weights is None else self.weights.own_density

    @property
    def default_density(self) -> float:
        """The density when none is asked for."""
        return self.own_density or _HALF

    @property
    def block(self) -> int:
        """How many consecutive input channels belong together in a layer whose single weights are masked."""
        return 1 if self.weights is None else self.weights.block

    def why_refused(self, target: Target) -> str | None:
        """Return why zeros that are for speed give none on ``target``; None where they may, or are not for speed."""
        return None if self.weights is None else self.weights.why_refused(target)


def parse_structure(name: str) -> Pattern:
    """Read ``channel``, a pattern of single weights, or ``channel+`` one that has a density of its own.

    Raises:
        ConfigError: if it is none of these.
    """
    if name == "channel":
        return Pattern(channels=True)
    channels = name.startswith("channel+")
    for place in PATTERNS.values():
        weights = load(place).parse(name.removeprefix("channel+"))
        if weights is not None and not (channels and weights.own_density is None):  # the density is the channels'
            return Pattern(channels, weights)
    raise ConfigError(
        f"unknown structure {name!a:.100}; there are {structure_names()}, with N below M and M up to {MAX_M}"
    )


@dataclass(frozen=True)
class Structure:
    """What masks may remove, and how much.

    Attributes:
        name: ``channel``, ``N:M``, ``channel+N:M``, ``unstructured``, or another row of ``PATTERNS``.
        density: in (0, 1], what a path keeps: of each group's channels (``channel`` and ``channel+N:M``), or of each
            masked layer's weights, or of all together; N/M by definition for ``N:M``.
        align: kept channels are rounded up to a multiple of this (never beyond the group).
        scope: which groups are masked where channels are.
        min_channels: layers with fewer input or output channels keep all weights in ``N:M``: a device gains nothing.
        budget: ``uniform``, the same density everywhere: that is exact, and no layer starves; or ``erk``, a higher one
            for smaller layers (`smart_train.masking.budget`).

    Raises:
        ConfigError: if a value is out of range or does not fit the name.
    """

    name: str = "channel"
    density: float = _HALF
    align: int = 8
    scope: Scope = "block"
    min_channels: int = 1
    budget: Budget = "uniform"

    def __post_init__(self) -> None:
        own, block = self.pattern.own_density, self.pattern.block  # an unknown name is refused first
        if not 0 < self.density <= 1:
            raise ConfigError(f"expected density in (0, 1], got {self.density}; 0.5 keeps half of each group")
        if own is not None and self.density != own:
            raise ConfigError(
                f"density {self.density} and {self.name}, which keeps {own:g}, cannot be combined; leave the density "
                f"out, or use channel+{self.name} to remove channels too"
            )
        if not 1 <= self.align <= MAX_INTEGER:
            raise ConfigError(
                f"expected align of 1 or more, up to {MAX_INTEGER}, got {self.align}; 8 suits most devices"
            )
        if self.pattern.channels and self.align % block:
            raise ConfigError(
                f"expected align that is a multiple of {block} for {self.name}, got {self.align}; "
                f"{math.lcm(self.align, block)} leaves whole blocks in each group"
            )
        if self.scope not in SCOPES:
            raise ConfigError(f"expected scope {' or '.join(SCOPES)}, got {self.scope!r}; use block")
        if not 1 <= self.min_channels <= MAX_INTEGER:
            raise ConfigError(
                f"expected min_channels of 1 or more, up to {MAX_INTEGER}, got {self.min_channels}; 1 leaves no "
                "layer out"
            )
        if self.budget not in BUDGETS:
            raise ConfigError(f"expected budget {' or '.join(BUDGETS)}, got {self.budget!r}; use uniform")
        if self.budget != "uniform" and own is not None:
            raise ConfigError(
                f"budget {self.budget} and {self.name}, which keeps {own:g} of every layer, cannot be combined; leave "
                f"the budget out, or use channel+{self.name}"
            )

    @cached_property
    def pattern(self) -> Pattern:
        """What the name means."""
        return parse_structure(self.name)

    @property
    def removes_nothing(self) -> bool:
        """Whether every path keeps all channels and weights."""
        weights = self.pattern.weights
        return self.density == 1 and (weights is None or weights.own_density is None)

    def kept(self, size: int, *, bundle: int = 1) -> int:
        """Return how many of a group's ``size`` a path keeps with a uniform budget: at least one aligned step.

        Args:
            size: of the group.
            bundle: how many channels each of its ``size`` stands for (:attr:`smart_train.masking.groups.Group.bundle`).
        """
        if not self.pattern.channels:
            return size
        step = self.align // math.gcd(self.align, bundle)
        wanted = math.ceil(self.density * size - 1e-9)  # 0.1 * 480 is 48.000000000000004
        return min(size, math.ceil(max(wanted, 1) / step) * step)

    def kept_weights(self, shape: Sequence[int]) -> int:
        """Return how many weights of a masked layer's weight, of ``shape`` after slicing, a path keeps, likewise."""
        weights = self.pattern.weights
        return math.prod(shape) if weights is None else weights.kept(shape, density=self.density)
