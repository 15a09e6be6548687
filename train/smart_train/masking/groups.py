"""What is kept or removed together: groups of channels, their values, and masks applied at their points.

A group is what a ``channel`` mask selects from. Its members are the places where its channels live: output channels of
a convolution (axis ``out``), input channels of the next (``in``), or both at once (``channel``: batch norm, depthwise
convolution). The mask itself acts at the group's points, the last layers that can zero the channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from smart_train.masking.layers import expert_at, layer_norm_axis
from smart_train.masking.parts import (
    Part,
    axis_length,
    has_plain_inputs,
    has_whole_filter_groups,
    is_depthwise,
    is_grouped,
    parameter_axis,
)

Axis = Literal["out", "in", "channel"]


@dataclass(frozen=True, eq=False)
class Member:
    """One place where a group's channels live.

    Attributes:
        module: dotted name, inside the network, of a module or of a parameter that no layer of torch's own holds.
        axis: which channels of that module; ``channel`` for a parameter.
        indices: int64 (group size, r): the r positions on that axis of each channel (r > 1 behind a flatten, or where
            a grouped convolution ties the channels that one of its filter groups reads and makes).
    """

    module: str
    axis: Axis
    indices: Tensor


@dataclass(frozen=True)
class Point:
    """A layer at which the mask acts, and the convolution or linear layer whose filters make the channel (or None)."""

    layer: str
    producer: str | None


@dataclass(frozen=True, eq=False)
class Group:
    """What is kept or removed together: ``size`` channels, or bundles of them; named by the first layer to make them.

    A bundle is what a grouped convolution cannot part: the channels of one of its filter groups.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    points: tuple[Point, ...]

    @property
    def bundle(self) -> int:
        """How many channels of the layers that make them each of the ``size`` stands for."""
        return max(m.indices.shape[1] for p in self.points for m in self.members_at(p.layer))

    def members_at(self, module: str) -> Iterator[Member]:
        """Yield the members in ``module`` on its output side."""
        return (m for m in self.members if m.module == module and m.axis != "in")


@dataclass(frozen=True)
class FoundGroups:
    """The accepted groups, and for those kept whole their name with the reason."""

    groups: tuple[Group, ...]
    kept_whole: dict[str, str] = field(default_factory=dict)


def axes_of(part: Part | None) -> tuple[Axis, ...]:
    """Return on which axes a group can have channels in ``part``; none where that is not ours to slice.

    Of convolutions and linear layers only exact types are masked, since a subclass computes something of its own; of
    one that reads plainly the inputs are. Norms are tried.
    """
    if isinstance(part, nn.Parameter):
        axis = parameter_axis(part)
        sliced = axis is not None and axis <= 1
    elif isinstance(part, nn.BatchNorm2d):
        sliced = part.affine and part.track_running_stats
    elif isinstance(part, nn.LayerNorm):
        sliced = layer_norm_axis(part) is not None
    elif type(part) not in {nn.Conv2d, nn.Linear}:
        return ("in",) if has_plain_inputs(part) else ()
    elif is_depthwise(part):
        sliced = True
    else:
        return ("in", "out")
    return ("channel",) if sliced else ()


def why_not_whole(members: Sequence[Member], parts: Mapping[str, Part]) -> str | None:
    """Return why ``members`` would take the filter groups of a grouped convolution apart; None where they do not."""
    for name in dict.fromkeys(member.module for member in members):
        convolution = parts.get(name)
        if not is_grouped(convolution):
            continue
        sides = {m.axis: m.indices for m in members if m.module == name}
        if sides.keys() != {"in", "out"}:
            return f"the other side of the grouped convolution {name} is kept whole"
        if not has_whole_filter_groups(convolution, inputs=sides["in"], outputs=sides["out"]):
            return f"it would take filter groups of {name} apart"
    return None


def apply_mask_(network: nn.Module, group: Group, keep: Tensor) -> None:
    """Set the masks of ``group`` at its points in an expert network to ``keep`` (bool, (size,)), in place.

    Points that several groups share (a concatenation's batch norm) keep what the other groups drop.
    """
    for point in group.points:
        layer = expert_at(network, point.layer)
        if layer.mask is None:
            mask = torch.ones(axis_length(layer, "out"), dtype=torch.bool, device=keep.device)
        else:
            mask = layer.mask.clone()
        for member in group.members_at(point.layer):
            mask[member.indices.to(mask.device)] = keep.to(mask.device).unsqueeze(1)
        layer.set_mask(mask)


def may_be_padded(network: nn.Module, group: Group) -> bool:
    """Whether channels of ``group`` that compute zeros may stay in a sliced network: a layer norm would count them."""
    return not any(isinstance(network.get_submodule(p.layer), nn.LayerNorm) for p in group.points)
