"""A network's part of a checkpoint: its tensors, groups and masks, as they are written and as they are checked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from smart_train.checkpoint.reader import Reader
from smart_train.choices import SHARES, Shares
from smart_train.errors import CheckpointError
from smart_train.masking.budget import kept_of_layers
from smart_train.masking.groups import Axis, Group, Member, Point, axes_of, why_not_whole
from smart_train.masking.network import SmartNetwork, own_parameters
from smart_train.masking.parts import Part, axis_length
from smart_train.masking.structure import Structure
from smart_train.masking.weight_masks import kept_inputs, pattern_holds

_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)  # whose parameters are sliced with them


def network_state(net: SmartNetwork) -> dict[str, Any]:
    """Return copies of the tensors of ``net``: the shared weights once, and each path's own.

    The form is ``{"shared": {name: tensor}, "paths": {path: {name: tensor}}, "versions": {module: number}}``, names as
    inside the plain network; versions are those that modules give their state, as torch keeps them in ``_metadata``.
    """
    first = net.path(net.path_names[0]).network
    own = net.own_parameters()
    shared = {n: p.detach().cpu().clone() for n, p in first.named_parameters() if n not in own}
    paths = {
        path: {n: t.detach().cpu().clone() for n, t in net.path(path).network.state_dict().items() if n not in shared}
        for path in net.path_names
    }
    return {"shared": shared, "paths": paths, "versions": _versions(first)}


def _versions(network: nn.Module) -> dict[str, int]:
    """Return the version of each module's state; a module without one is left out."""
    metadata: Mapping[str, Mapping[str, Any]] = getattr(network.state_dict(), "_metadata", {})
    return {name: found["version"] for name, found in metadata.items() if type(found.get("version")) is int}


def load_network_state_(net: SmartNetwork, state: Mapping[str, Any]) -> None:
    """Copy what :func:`network_state` returned into ``net``, in place; names and shapes must match exactly.

    Older states hold no versions; theirs are taken to be those of the modules now.

    Raises:
        CheckpointError: if they do not.
    """
    for path in net.path_names:
        wanted = net.path(path).network.state_dict()
        versions = state.get("versions", _versions(net.path(path).network))
        given = {**state["shared"], **state["paths"][path]}
        wrong = sorted(wanted.keys() ^ given.keys()) or [
            n for n, t in wanted.items() if t.shape != given[n].shape or t.dtype != given[n].dtype
        ]
        if wrong:
            raise CheckpointError(
                f"expected the tensors of its architecture for path {path}, got a missing, extra or misshapen "
                f"{wrong[0]}; train or copy the checkpoint again"
            )
        ordered = OrderedDict(given)
        ordered._metadata = {name: {"version": number} for name, number in versions.items()}  # type: ignore[attr-defined]  # as torch does
        net.path(path).network.load_state_dict(ordered)


def group_record(group: Group) -> dict[str, Any]:
    """Return ``group`` as :func:`read_groups` reads it."""
    return {
        "name": group.name,
        "size": group.size,
        "members": [{"module": m.module, "axis": m.axis, "indices": m.indices} for m in group.members],
        "points": [{"layer": p.layer, "producer": p.producer} for p in group.points],
    }


def read_masks(
    raw: Mapping[str, Any], read: Reader, paths: Sequence[str], groups: Sequence[Group], *, kept: Sequence[int]
) -> dict[str, list[Tensor]]:
    """Return the masks of each path, which keep ``kept`` of each group: a checkpoint is written once they are."""
    source = read.get(raw, "masks", dict)
    return {path: _masks_of_path(source, path, read, groups, kept) for path in paths}


def _masks_of_path(
    source: dict[str, Any], path: str, read: Reader, groups: Sequence[Group], counts: Sequence[int]
) -> list[Tensor]:
    keeps = read.get(source, path, list)
    if len(keeps) != len(groups):
        raise read.fail(f"a mask for each group of path {path}")
    masks = []
    for group, keep, kept in zip(groups, keeps, counts, strict=True):
        mask = read.tensor({path: keep}, path, dtype=torch.bool, shape=(group.size,))
        if int(mask.sum()) != kept:
            raise read.fail(f"masks of path {path} that keep {kept} of {group.size} channels of group {group.name}")
        masks.append(mask)
    return masks


def read_weight_masks(
    raw: Mapping[str, Any],
    plain: nn.Module,
    structure: Structure,
    groups: Sequence[Group],
    *,
    masks: Mapping[str, Sequence[Tensor]],
    read: Reader,
) -> dict[str, dict[str, Tensor]]:
    """Return the masks of single weights by path and layer, which keep what the structure says, in the sliced order.

    ``masks`` are those of channels, by path.
    """
    paths = list(masks)
    source = read.get(raw, "weight_masks", dict)
    given = {path: read.get(source, path, dict) for path in paths}
    layers = {name: m for name, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    layers = {name: m for name, m in layers.items() if not isinstance(m, nn.Conv2d) or m.groups == 1}
    names = [name for name in layers if name in given[paths[0]]]
    if not names or any(found.keys() != set(names) for found in given.values()):
        raise read.fail("weight masks of the same layers, one or more, on each path")
    counts = kept_of_layers(structure, {name: layers[name].weight.shape for name in names})
    result: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        inputs = kept_inputs(names, modules=layers, groups=groups, keeps=masks[path])
        result[path] = {}
        for name in names:
            shape = layers[name].weight.shape
            mask = read.tensor(given[path], name, dtype=torch.bool, shape=tuple(shape))
            kept = counts.get(name) or structure.kept_weights((shape[0], int(inputs[name].sum()), *shape[2:]))
            holds = pattern_holds(mask, keep_in=inputs[name], structure=structure, count=kept)
            if int(mask.sum()) != kept or not holds:
                raise read.fail(f"a weight mask of {name} on path {path} that keeps what {structure.name} says")
            result[path][name] = mask
    return result


def read_shares(raw: Mapping[str, Any], read: Reader) -> Shares:
    """Return what the paths have in common; older checkpoints do not say, and have the weights."""
    name = read.text(raw, "shares") if "shares" in raw else "weights"
    if name not in SHARES:
        raise read.fail(f"one of {', '.join(SHARES)} as what the paths share")
    return name


def read_state(
    plain: nn.Module, state: dict[str, Any], *, paths: tuple[str, ...], shares: Shares, read: Reader
) -> dict[str, Any]:
    """Return the tensors in the form of :func:`network_state`, checked against the network on the meta device."""
    own = own_parameters(plain, shares)
    wanted = plain.state_dict()
    shared = {n for n, _ in plain.named_parameters() if n not in own}

    def part(source: Any, key: str, names: set[str]) -> dict[str, Tensor]:
        tensors = read.get(source, key, dict)
        if tensors.keys() != names:
            raise read.fail(f"the tensors of its architecture under '{key}'")
        return {
            name: read.tensor(tensors, name, dtype=wanted[name].dtype, shape=tuple(wanted[name].shape))
            for name in sorted(names)
        }

    each = read.get(state, "paths", dict)
    found: dict[str, Any] = {
        "shared": part(state, "shared", shared),
        "paths": {path: part(each, path, set(wanted) - shared) for path in paths},
    }
    if "versions" in state:  # older ones have none
        versions = read.get(state, "versions", dict)
        if not versions.keys() <= {name for name, _ in plain.named_modules()}:
            raise read.fail("versions of its architecture's modules")
        found["versions"] = {name: read.integer(versions, name) for name in versions}
    return found


def read_groups(records: list[Any], modules: Mapping[str, Part], read: Reader) -> list[Group]:
    """Return the groups; a channel in two of them, or twice in one, is refused: which mask would it follow?"""
    taken: dict[tuple[str, Axis], Tensor] = {}
    own = {id(p) for m in modules.values() if isinstance(m, _LAYERS) for p in m.parameters(recurse=False)}
    modules = {name: part for name, part in modules.items() if id(part) not in own}
    return [_group(record, modules, taken, read) for record in records]


def _group(record: Any, modules: Mapping[str, Part], taken: dict[tuple[str, Axis], Tensor], read: Reader) -> Group:
    """Return one group; ``taken`` says which channels are in groups already and is brought up to date."""
    size = read.integer(record, "size")
    members = []
    for member in read.get(record, "members", list):
        module, axis = read.get(member, "module", str), cast("Axis", read.get(member, "axis", str))
        indices = read.tensor(member, "indices", dtype=torch.int64, shape=(size, None))
        found = modules.get(module)
        if found is None or axis not in axes_of(found) or indices.numel() == 0:
            raise read.fail("channels of its layers in a group")
        length = axis_length(found, "in" if axis == "in" else "out")
        if int(indices.min()) < 0 or int(indices.max()) >= length:
            raise read.fail(f"channel numbers of {module} in a group")
        counts = taken.get((module, axis), torch.zeros(length, dtype=torch.int64))
        counts = counts + torch.bincount(indices.flatten(), minlength=length)
        if int(counts.max()) > 1:
            raise read.fail(f"each channel of {module} in one group")
        taken[module, axis] = counts
        members.append(Member(module, axis, indices))
    if why_not_whole(members, modules) is not None:
        raise read.fail("whole filter groups of grouped convolutions in a group")
    outputs = {m.module for m in members if m.axis != "in" and isinstance(modules[m.module], nn.Module)}
    given = read.get(record, "points", list)
    if not 1 <= len(given) <= len(members):
        raise read.fail("a mask point for each group, and no more than it has members")
    points = []
    for point in given:
        layer, producer = read.get(point, "layer", str), read.get(point, "producer", (str, type(None)))
        if layer not in outputs or (producer is not None and producer not in outputs):
            raise read.fail("mask points that are members of their group")
        points.append(Point(layer, producer))
    return Group(read.text(record, "name"), size, tuple(members), tuple(points))
