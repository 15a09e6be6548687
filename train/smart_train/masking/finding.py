"""Find the groups of a network: read by Torch-Pruning, and believed only after a numerical probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smart_train.choices import Scope
from smart_train.errors import NetworkError
from smart_train.masking.dependencies import read_dependencies
from smart_train.masking.groups import FoundGroups, Group, Member, Point, may_be_padded
from smart_train.masking.parts import is_grouped
from smart_train.masking.probe import PROBE_TOLERANCE, Probe
from smart_train.masking.tracing import Trace, trace, traceable


def _points(members: Sequence[Member], modules: dict[str, nn.Module], seen: Trace) -> tuple[Point, ...]:
    """Put the mask after the batch norm where one follows, else at the layer that makes the channel.

    Any other norm makes something of a zero, so it is masked as well; a parameter is trusted not to, and tried.
    """
    norms = {m.module for m in members if isinstance(modules.get(m.module), nn.BatchNorm2d | nn.LayerNorm)}
    points = []
    fed = set()
    for member in members:
        if member.axis == "in" or member.module in norms or member.module not in modules:
            continue
        norm = seen.batch_norm_after.get(member.module)
        if norm in norms:
            fed.add(norm)
            points.append(Point(layer=str(norm), producer=member.module))
        else:
            points.append(Point(layer=member.module, producer=member.module))
    points += [Point(layer=name, producer=None) for name in sorted(norms - fed)]
    return tuple(points)


def _together(groups: Sequence[Group], probe: Probe, kept_whole: dict[str, str]) -> list[Group]:
    """Return ``groups`` without those that cannot be sliced beside the ones before them; ``kept_whole`` gets these."""
    if not groups or probe.difference(groups) <= PROBE_TOLERANCE:
        return list(groups)
    result: list[Group] = []
    for group in groups:
        if probe.difference([*result, group]) <= PROBE_TOLERANCE:
            result.append(group)
        else:
            kept_whole[group.name] = "slicing it beside the groups before it changes the result"
    return result


def find_groups(network: nn.Module, example: Tensor, *, scope: Scope) -> FoundGroups:
    """Find the groups of ``network`` that ``channel`` masks may select from.

    Args:
        network: a plain classifier on the CPU; it is not changed.
        example: float (N, C, H, W), an input it takes.
        scope: ``block`` for channels made by one layer (block interiors), ``all`` for residual streams too.

    Raises:
        NetworkError: if it does not run on the example, is no classifier, cannot be traced, or no group can be masked,
            with the reasons.
    """
    images = torch.rand(example.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    modules = dict(network.named_modules())
    with traceable(network):
        seen = trace(network, images)
        read = read_dependencies(network, images)
    probe = Probe(network, images)
    accepted: list[Group] = []
    kept_whole: dict[str, str] = {}
    order = list(modules)
    for found in read:
        producers = [m.module for m in found.members if m.axis == "out" and not is_grouped(modules[m.module])]
        if seen.output_module in {found.name, *producers}:
            continue  # the classifier's own outputs are never masked
        if found.reason is not None or not producers:
            kept_whole[found.name] = found.reason or "its channels are those of the image"
            continue
        name = min(producers, key=order.index)
        if found.size < 2:
            kept_whole[name] = "it has one channel, or its channels were lost on the way"
            continue
        group = Group(name, found.size, found.members, _points(found.members, modules, seen))
        if scope == "block" and len(producers) > 1:
            first = min(producers, key=seen.order.index)
            if not may_be_padded(network, group) or not probe.is_made_by_one(group, producer=first):
                kept_whole[found.name] = "residual stream (scope block)"
                continue
        difference = probe.difference([group])
        if not difference <= PROBE_TOLERANCE:  # nan is a difference too
            wrong = "ends in other shapes" if difference == float("inf") else f"changes the result by {difference:.1g}"
            kept_whole[name] = f"slicing it {wrong} where masking does not"
            continue
        accepted.append(group)
    accepted = _together(accepted, probe, kept_whole)
    if not accepted:
        reasons = "; ".join(f"{name}: {why}" for name, why in kept_whole.items()) or "it has no hidden channels"
        raise NetworkError(
            f"no group of channels of {type(network).__name__} can be masked at scope {scope} ({reasons}); try scope "
            f"all or another network"
        )
    accepted.sort(key=lambda group: order.index(group.name))
    return FoundGroups(tuple(accepted), kept_whole)
