"""Which channels depend on one another, as Torch-Pruning reads it: claims that a probe has still to confirm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.errors import NetworkError
from smart_train.masking.groups import Axis, Member, axes_of, why_not_whole
from smart_train.masking.parts import Part, axis_length, is_grouped, parts

_Thing = tuple[int, int]  # number of a group, channel of it


@dataclass(frozen=True)
class FoundGroup:
    """What Torch-Pruning says of a group, with the reason why it cannot be used, if there is one."""

    name: str
    size: int
    members: tuple[Member, ...]
    reason: str | None = None


def _read_group(raw: Any, names: dict[Part, str]) -> FoundGroup:
    """Read one Torch-Pruning group."""
    size = len(raw[0].idxs)
    group = names.get(raw[0].dep.target.module, raw[0].dep.target.name)
    rows: dict[tuple[str, Axis], list[list[int]]] = {}
    reason: str | None = None
    for item in raw:
        part = item.dep.target.module
        if part not in names:  # an elementwise, concat or reshape node, which has nothing to slice
            if not type(part).__module__.startswith("torch_pruning"):
                reason = f"it reaches {item.dep.target.name}, which is no module of the network"
            continue
        if isinstance(part, nn.PReLU):  # Torch-Pruning names the layer; what is sliced is its parameter
            if part.weight.numel() == 1:
                continue
            part = part.weight
        side = "in" if item.dep.handler.__name__ == "prune_in_channels" else "out"
        axis = next((axis for axis in axes_of(part) if axis in {side, "channel"}), None)
        if axis is None:
            reason = f"it reaches {names[part]} ({type(part).__name__}), which cannot be sliced"
            continue
        length = axis_length(part, "in" if axis == "in" else "out")
        positions = rows.setdefault((names[part], axis), [[] for _ in range(size)])
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            if root is None or not (0 <= root < size and 0 <= index < length):
                reason = f"its channels do not fit those of {names[part]}"
            elif index not in positions[root]:
                positions[root].append(index)
    members = []
    for (name, axis), found in rows.items():
        if reason is None and len({len(row) for row in found}) != 1:
            reason = f"its channels take unequal shares of {name}"
        if reason is None:
            members.append(Member(name, axis, torch.tensor(found, dtype=torch.int64)))
    return FoundGroup(group, size, tuple(members), reason)


def _read_groups(graph: Any, names: dict[Part, str]) -> Iterator[FoundGroup]:
    """Yield the group of each layer that makes channels, as ``get_all_groups`` does, but go on where one fails."""
    seen: set[Part] = set()
    for layer in list(graph.module2node):
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer in seen:
            continue
        pruner = graph.get_pruner_of_module(layer)
        channels = range(pruner.get_out_channels(layer))
        try:
            raw = graph.get_pruning_group(layer, pruner.prune_out_channels, channels)
        except (IndexError, ZeroDivisionError):  # as at a split of shuffled channels
            yield FoundGroup(names[layer], len(channels), (), "Torch-Pruning cannot follow its channels")
            continue
        seen.update(item.dep.target.module for item in raw if graph.is_out_channel_pruning_fn(item.dep.handler))
        yield _read_group(raw, names)


def _bundles(ties: Iterable[tuple[_Thing, _Thing]]) -> list[list[_Thing]]:
    """Return what belongs together where the two things of each tie do; each bundle and all of them in order."""
    bundle_of: dict[_Thing, set[_Thing]] = {}
    for one, other in ties:
        small, large = sorted((bundle_of.setdefault(one, {one}), bundle_of.setdefault(other, {other})), key=len)
        if small is not large:
            large |= small
            bundle_of.update(dict.fromkeys(small, large))
    return sorted({id(bundle): sorted(bundle) for bundle in bundle_of.values()}.values())


def _tie_filter_groups(found: Sequence[FoundGroup], modules: Mapping[str, nn.Module]) -> list[FoundGroup]:
    """Join the groups before and after each grouped convolution, in bundles of what its filter groups read and make.

    Without a whole filter group it is a smaller grouped convolution; without a part of one it would be none.
    """
    channels: list[tuple[_Thing, _Thing]] = []
    groups: list[tuple[_Thing, _Thing]] = []  # with 0 for the channel
    for name, convolution in modules.items():
        if not is_grouped(convolution):
            continue
        first: dict[int, _Thing] = {}  # of each filter group: one channel that it reads or makes
        for number, group in enumerate(found):
            for member in group.members:
                if member.module != name:
                    continue
                share = axis_length(convolution, member.axis) // convolution.groups
                for channel, row in enumerate(member.indices.tolist()):
                    for index in row:
                        other = first.setdefault(index // share, (number, channel))
                        channels.append((other, (number, channel)))
                        groups.append(((other[0], 0), (number, 0)))
    bundles = _bundles(channels)
    result = list(found)
    for together in _bundles(groups):
        numbers = [number for number, _ in together]
        own = [bundle for bundle in bundles if bundle[0][0] in numbers]
        joined = _joined([found[number] for number in numbers], numbers, own)
        for number in numbers:
            result[number] = joined
    return [
        replace(group, reason=why) if (why := why_not_whole(group.members, modules)) else group
        for group in dict.fromkeys(result)
    ]


def _joined(groups: Sequence[FoundGroup], numbers: Sequence[int], bundles: list[list[_Thing]]) -> FoundGroup:
    """Return several groups as one whose channels are ``bundles`` of theirs, given as (number, channel)."""
    name, size = groups[0].name, len(bundles)
    if sum(map(len, bundles)) != sum(group.size for group in groups):
        return FoundGroup(name, size, (), "a grouped convolution reads or makes a part of its channels")
    if size < 2:
        return FoundGroup(name, size, (), "a grouped convolution ties all its channels together")
    rows: dict[tuple[str, Axis], list[list[int]]] = {}
    of = dict(zip(numbers, groups, strict=True))
    for i, bundle in enumerate(bundles):
        for number, channel in bundle:
            for member in of[number].members:
                row = rows.setdefault((member.module, member.axis), [[] for _ in bundles])[i]
                row.extend(member.indices[channel].tolist())
    members = []
    for (module, axis), found in rows.items():
        if len({len(row) for row in found}) != 1:
            return FoundGroup(name, size, (), f"its channels take unequal shares of {module}")
        members.append(Member(module, axis, torch.tensor([sorted(row) for row in found], dtype=torch.int64)))
    return FoundGroup(name, size, tuple(members))


@contextmanager
def _forgiving_reshapes() -> Iterator[None]:
    """Let Torch-Pruning go on where it divides by a number of channels that it could not find out.

    It stops so at a channel shuffle of half the channels. What it then takes for granted is wrong, and tried like all
    it says.
    """
    from torch_pruning.dependency import index_mapping  # noqa: PLC0415  # see read_dependencies

    usual = index_mapping.update_reshape_index_mapping

    def forgiving(graph: Any, node: Any) -> None:
        with suppress(ZeroDivisionError):
            usual(graph, node)

    index_mapping.update_reshape_index_mapping = forgiving
    try:
        yield
    finally:
        index_mapping.update_reshape_index_mapping = usual


def read_dependencies(network: nn.Module, images: Tensor) -> list[FoundGroup]:
    """Return the groups that Torch-Pruning finds in a plain ``network``, with whole filter groups in each.

    Args:
        network: on the CPU, made :func:`~smart_train.masking.tracing.traceable`.
        images: float (N, C, H, W), an input it takes.

    Raises:
        NetworkError: if it cannot be traced.
    """
    import torch_pruning as tp  # noqa: PLC0415  # takes a second to import and only conversion needs it

    names: dict[Part, str] = {part: name for name, part in parts(network).items()}
    with _forgiving_reshapes():
        try:
            graph = tp.DependencyGraph().build_dependency(network, example_inputs=images, verbose=False)
            found = list(_read_groups(graph, names))
        except Exception as error:  # tracing meets whatever a network's author wrote
            raise NetworkError(
                f"tracing the channel dependencies of {type(network).__name__} stopped: {error}; replace the "
                "operation it names"
            ) from error
    return _tie_filter_groups(found, dict(network.named_modules()))
