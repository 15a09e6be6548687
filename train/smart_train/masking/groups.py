"""Which channels must be kept or removed together, found by Torch-Pruning and believed only after a numerical probe.

A group is what a ``channel`` mask selects from. Its members are the places where its channels live: output channels of
a convolution (axis ``out``), input channels of the next (``in``), or both at once (``channel``: batch norm, depthwise
convolution). The mask itself acts at the group's points, the last layers that can zero the channel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from smart_train.errors import NetworkError
from smart_train.masking.layers import Expert, layer_norm_axis, make_expert_, make_plain_
from smart_train.masking.slicing import (
    Part,
    axis_length,
    has_plain_inputs,
    has_whole_filter_groups,
    is_depthwise,
    is_grouped,
    parameter_axis,
    parts,
    slice_network_,
)

Axis = Literal["out", "in", "channel"]
Scope = Literal["block", "all"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# In float64 a correct slice agrees to rounding (1e-13 seen); a wrong one is off by orders of magnitude more.
PROBE_TOLERANCE = 1e-9


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


@dataclass
class _Trace:
    """Who feeds whom, seen by module hooks in one forward pass."""

    batch_norm_after: dict[str, str]  # producer -> the batch norm that reads exactly its output
    output_module: str | None
    order: tuple[str, ...]  # of the calls, each module where it was called first


def run_classifier(network: nn.Module, images: Tensor) -> Tensor:
    """Return the scores (N, classes) of a plain ``network``; raise NetworkError if it gives none."""
    try:
        output = network(images)
    except Exception as error:  # its own code runs here
        raise NetworkError(
            f"expected a network that takes images of shape {tuple(images.shape)}, got {type(network).__name__}, which "
            f"stopped with: {error}; check the example input"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise NetworkError(
            f"expected a classifier that maps images to scores (N, classes), got {got}; wrap it so that it does"
        )
    return output


def _trace(network: nn.Module, images: Tensor) -> _Trace:
    made_by: dict[int, str] = {}
    alive: list[Tensor] = []  # keeps every tensor seen, so that no id is given twice
    after: dict[str, str] = {}
    order: dict[str, None] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            order.setdefault(name)
            if isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made_by:
                after[made_by[id(inputs[0])]] = name
            if isinstance(output, Tensor):
                alive.append(output)
                made_by[id(output)] = name

        handles.append(module.register_forward_hook(hook))

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) or not any(True for _ in module.children()):
            watch(name, module)
    try:
        with torch.no_grad():
            output = run_classifier(network, images)
    finally:
        for handle in handles:
            handle.remove()
    return _Trace(batch_norm_after=after, output_module=made_by.get(id(output)), order=tuple(order))


def _axis(part: Part, handler: str) -> Axis | None:
    """Return the axis that a Torch-Pruning handler works on, None where this type of layer is not ours to slice.

    Of convolutions and linear layers only exact types are masked: a subclass computes something of its own. Norms, and
    what a subclass reads, are tried.
    """
    kind = type(part)
    if isinstance(part, nn.BatchNorm2d):
        return "channel" if part.affine and part.track_running_stats else None
    if isinstance(part, nn.LayerNorm):
        return None if layer_norm_axis(part) is None else "channel"
    if isinstance(part, nn.Parameter):
        axis = parameter_axis(part)
        return None if axis is None or axis > 1 else "channel"
    if kind not in {nn.Conv2d, nn.Linear}:
        return "in" if has_plain_inputs(part) and handler == "prune_in_channels" else None
    if is_depthwise(part):
        return "channel"
    return "in" if handler == "prune_in_channels" else "out"


@dataclass(frozen=True)
class _Found:
    """What Torch-Pruning says of a group, with the reason why it cannot be used, if there is one."""

    name: str
    size: int
    members: tuple[Member, ...]
    reason: str | None = None


def _read_group(raw: Any, names: dict[Part, str]) -> _Found:
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
        axis = _axis(part, item.dep.handler.__name__)
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
    return _Found(group, size, tuple(members), reason)


def _read_groups(graph: Any, names: dict[Part, str]) -> Iterator[_Found]:
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
            yield _Found(names[layer], len(channels), (), "Torch-Pruning cannot follow its channels")
            continue
        seen.update(item.dep.target.module for item in raw if graph.is_out_channel_pruning_fn(item.dep.handler))
        yield _read_group(raw, names)


class _Ties:
    """Things that belong together: joined two by two, read as bundles."""

    def __init__(self) -> None:
        self._parent: dict[tuple[int, int], tuple[int, int]] = {}

    def _root(self, thing: tuple[int, int]) -> tuple[int, int]:
        while self._parent.setdefault(thing, thing) != thing:
            thing = self._parent[thing]
        return thing

    def join(self, one: tuple[int, int], other: tuple[int, int]) -> None:
        """Say that two things belong together."""
        first, last = sorted((self._root(one), self._root(other)))
        self._parent[last] = first

    def bundles(self) -> list[list[tuple[int, int]]]:
        """Return what belongs together, each bundle and all of them in order."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for thing in sorted(self._parent):
            found.setdefault(self._root(thing), []).append(thing)
        return [found[root] for root in sorted(found)]


def _tie_filter_groups(found: Sequence[_Found], modules: Mapping[str, nn.Module]) -> list[_Found]:
    """Join the groups before and after each grouped convolution, in bundles of what its filter groups read and make.

    Without a whole filter group it is a smaller grouped convolution; without a part of one it would be none.
    """
    channels, groups = _Ties(), _Ties()  # a thing is (number of the group, channel), or (number of the group, 0)
    for name, convolution in modules.items():
        if not isinstance(convolution, nn.Conv2d) or not is_grouped(convolution):
            continue
        first: dict[int, tuple[int, int]] = {}  # of each filter group: one channel that it reads or makes
        for number, group in enumerate(found):
            for member in group.members:
                if member.module != name:
                    continue
                share = axis_length(convolution, member.axis) // convolution.groups
                for channel, row in enumerate(member.indices.tolist()):
                    for index in row:
                        other = first.setdefault(index // share, (number, channel))
                        channels.join(other, (number, channel))
                        groups.join((other[0], 0), (number, 0))
    bundles = channels.bundles()
    result = list(found)
    for together in groups.bundles():
        numbers = [number for number, _ in together]
        own = [bundle for bundle in bundles if bundle[0][0] in numbers]
        joined = _joined([found[number] for number in numbers], numbers, own)
        for number in numbers:
            result[number] = joined
    return [_with_whole_filter_groups(group, modules) for group in dict.fromkeys(result)]


def _joined(groups: Sequence[_Found], numbers: Sequence[int], bundles: list[list[tuple[int, int]]]) -> _Found:
    """Return several groups as one whose channels are ``bundles`` of theirs, given as (number, channel)."""
    name, size = groups[0].name, len(bundles)
    if sum(map(len, bundles)) != sum(group.size for group in groups):
        return _Found(name, size, (), "a grouped convolution reads or makes a part of its channels")
    if size < 2:
        return _Found(name, size, (), "a grouped convolution ties all its channels together")
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
            return _Found(name, size, (), f"its channels take unequal shares of {module}")
        members.append(Member(module, axis, torch.tensor([sorted(row) for row in found], dtype=torch.int64)))
    return _Found(name, size, tuple(members))


def _with_whole_filter_groups(group: _Found, modules: Mapping[str, nn.Module]) -> _Found:
    """Return ``group``, with a reason if it would take a grouped convolution apart."""
    for name in dict.fromkeys(member.module for member in group.members):
        convolution = modules.get(name)
        if not isinstance(convolution, nn.Conv2d) or not is_grouped(convolution):
            continue
        sides = {m.axis: m.indices for m in group.members if m.module == name}
        if sides.keys() != {"in", "out"}:
            return replace(group, reason=f"the other side of the grouped convolution {name} is kept whole")
        if not has_whole_filter_groups(convolution, inputs=sides["in"], outputs=sides["out"]):
            return replace(group, reason=f"it would take filter groups of {name} apart")
    return group


def _points(members: Sequence[Member], modules: dict[str, nn.Module], trace: _Trace) -> tuple[Point, ...]:
    """Put the mask after the batch norm where one follows, else at the layer that makes the channel.

    Any other norm makes something of a zero, so it is masked as well; a parameter is trusted not to, and tried.
    """
    norms = {m.module for m in members if isinstance(modules.get(m.module), nn.BatchNorm2d | nn.LayerNorm)}
    points = []
    fed = set()
    for member in members:
        if member.axis == "in" or member.module in norms or member.module not in modules:
            continue
        norm = trace.batch_norm_after.get(member.module)
        if norm in norms:
            fed.add(norm)
            points.append(Point(layer=str(norm), producer=member.module))
        else:
            points.append(Point(layer=member.module, producer=member.module))
    points += [Point(layer=name, producer=None) for name in sorted(norms - fed)]
    return tuple(points)


@contextmanager
def _quiet_graph(network: nn.Module) -> Iterator[None]:
    """Put back the training flags and gradient switches that building a dependency graph changes."""
    flags = [(m, m.training) for m in network.modules()]
    wants = [(p, p.requires_grad) for p in network.parameters()]
    try:
        for p, _ in wants:
            p.requires_grad_(True)  # Torch-Pruning follows the autograd graph
        network.eval()
        yield
    finally:
        for m, flag in flags:
            m.training = flag
        for p, want in wants:
            p.requires_grad_(want)


@contextmanager
def _forgiving_reshapes() -> Iterator[None]:
    """Let Torch-Pruning go on where it divides by a number of channels that it could not find out.

    It stops so at a channel shuffle of half the channels. What it then takes for granted is wrong, and tried like all
    it says.
    """
    from torch_pruning.dependency import index_mapping  # noqa: PLC0415  # see find_groups

    usual = index_mapping.update_reshape_index_mapping

    def forgiving(graph: Any, node: Any) -> None:
        with suppress(ZeroDivisionError):
            usual(graph, node)

    index_mapping.update_reshape_index_mapping = forgiving
    try:
        yield
    finally:
        index_mapping.update_reshape_index_mapping = usual


def _randomise_(network: nn.Module, generator: torch.Generator) -> None:
    """Give every layer values that no slice could get right by luck (zeros, say), in place."""

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype) * (high - low) + low

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                scale = (2 / module.weight[0].numel()) ** 0.5  # keeps the size of features through ReLUs
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator, dtype=torch.float64) * scale)
                if module.bias is not None:
                    module.bias.copy_(uniform(module.bias, -1.0, 1.0))
            elif isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -1.0, 1.0),
                    (module.running_mean, -1.0, 1.0),
                    (module.running_var, 0.5, 1.5),
                ):
                    if tensor is not None:
                        tensor.copy_(uniform(tensor, low, high))
            else:  # a layer scale that starts at 1e-6 would hide what is wrong behind it
                for parameter in module.parameters(recurse=False):
                    if parameter.is_floating_point():
                        parameter.copy_(uniform(parameter, 0.5, 1.5))


def apply_mask_(network: nn.Module, group: Group, keep: Tensor) -> None:
    """Set the masks of ``group`` at its points in an expert network to ``keep`` (bool, (size,)), in place.

    Points that several groups share (a concatenation's batch norm) keep what the other groups drop.
    """
    for point in group.points:
        layer = network.get_submodule(point.layer)
        assert isinstance(layer, Expert)
        if layer.mask is None:
            mask = torch.ones(axis_length(layer, "out"), dtype=torch.bool, device=keep.device)
        else:
            mask = layer.mask.clone()
        for member in group.members_at(point.layer):
            mask[member.indices.to(mask.device)] = keep.to(mask.device).unsqueeze(1)
        layer.set_mask(mask)


def _without_shifts(network: nn.Module) -> nn.Module:
    """Return a copy whose layers make zeros of zeros."""
    result = copy.deepcopy(network)
    for module in result.modules():
        shifts = [module.bias] if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) else []
        if isinstance(module, nn.BatchNorm2d):
            shifts.append(module.running_mean)
        for shift in shifts:
            if shift is not None:
                nn.init.zeros_(shift)
    return result


def _copied(network: nn.Module, masked: Sequence[Group]) -> nn.Module:
    """Return a copy of an expert network with parameters of its own where masks are to be multiplied in only.

    All parameters of a large network, copied for each of its groups, would take most of the time of converting it.
    """
    points = {point.layer for group in masked for point in group.points}
    own = {id(p) for name in points for p in network.get_submodule(name).parameters()}
    return copy.deepcopy(network, {id(p): p for p in network.parameters() if id(p) not in own})


class Probe:
    """Tries groups: a group may be masked only where slicing it gives the very same network.

    Args:
        network: a plain network; it is not changed. The trial copies get random values in float64.
        images: float (N, C, H, W) inputs.
        seed: of the values that every layer gets, and of the kept channels.
    """

    def __init__(self, network: nn.Module, images: Tensor, *, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._images = images.to(device="cpu", dtype=torch.float64)
        plain = copy.deepcopy(network).to(device="cpu", dtype=torch.float64).eval()
        _randomise_(plain, self._generator)
        self._network = plain
        make_expert_(self._network)

    @torch.no_grad()
    def difference(self, groups: Sequence[Group]) -> float:
        """Return max|a-b| / max(1, max|a|) between masking and slicing ``groups`` to random channels, half of each.

        Where that is allowed (:func:`may_be_padded`), one masked channel stays: it must compute nothing but zeros.
        """
        keeps, padded = [], []
        for group in groups:
            order = torch.randperm(group.size, generator=self._generator)
            keep = torch.zeros(group.size, dtype=torch.bool)
            keep[order[: max(1, group.size // 2)]] = True
            keeps.append(keep)
            more = keep.clone()
            if int(keep.sum()) + 1 < group.size and may_be_padded(self._network, group):
                more[order[int(keep.sum())]] = True
            padded.append(more)
        return self._difference(self._network, groups, keeps, sliced_to=padded)

    @torch.no_grad()
    def is_made_by_one(self, group: Group, *, producer: str) -> bool:
        """Whether the channels of ``group`` are zero where ``producer`` alone makes zeros of them.

        So it is in a block with squeeze-excite, where a second layer only scales them; a residual stream goes on with
        what its other layers add. Tried without all shifts, as a batch norm makes its shift of a zero.
        """
        points = tuple(point for point in group.points if producer in {point.producer, point.layer})
        if not points:
            return False
        keep = torch.arange(group.size) < max(1, group.size // 2)
        found = self._difference(
            _without_shifts(self._network), [group], [keep], sliced_to=[keep], masked=[replace(group, points=points)]
        )
        return found <= PROBE_TOLERANCE

    def _difference(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        keeps: Sequence[Tensor],
        *,
        sliced_to: Sequence[Tensor],
        masked: Sequence[Group] | None = None,
    ) -> float:
        """Compare ``network`` masked to ``keeps`` and sliced; it has no masks before and after."""
        masked = groups if masked is None else masked
        try:
            for group, keep in zip(masked, keeps, strict=True):
                apply_mask_(network, group, keep)
            expected = network(self._images)
            sliced = _copied(network, masked)
            make_plain_(sliced)
            slice_network_(sliced, groups, sliced_to)
            got = sliced(self._images)
        except Exception:  # a forward may say in its own way that shapes no longer fit: this group cannot be sliced
            return float("inf")
        finally:
            for group in masked:
                apply_mask_(network, group, torch.ones(group.size, dtype=torch.bool))
        if got.shape != expected.shape:
            return float("inf")
        return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))


def may_be_padded(network: nn.Module, group: Group) -> bool:
    """Whether channels of ``group`` that compute zeros may stay in a sliced network: a layer norm would count them."""
    return not any(isinstance(network.get_submodule(p.layer), nn.LayerNorm) for p in group.points)


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


def _makes_channels(member: Member, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a member is a layer that makes channels, and not one that passes them on in groups."""
    return member.axis == "out" and not is_grouped(modules[member.module])


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
    import torch_pruning as tp  # noqa: PLC0415  # takes a second to import and only conversion needs it

    images = torch.rand(example.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    modules = dict(network.named_modules())
    names: dict[Part, str] = {part: name for name, part in parts(network).items()}
    with _quiet_graph(network), _forgiving_reshapes():
        trace = _trace(network, images)
        try:
            graph = tp.DependencyGraph().build_dependency(network, example_inputs=images, verbose=False)
            read = list(_read_groups(graph, names))
        except Exception as error:  # tracing meets whatever a network's author wrote
            raise NetworkError(
                f"expected a network whose channel dependencies can be traced, got {type(network).__name__}, where "
                f"tracing stopped: {error}; replace the operation it names"
            ) from error
    probe = Probe(network, images)
    accepted: list[Group] = []
    kept_whole: dict[str, str] = {}
    order = list(modules)
    for found in _tie_filter_groups(read, modules):
        producers = [m.module for m in found.members if _makes_channels(m, modules)]
        if trace.output_module in {found.name, *producers}:
            continue  # the classifier's own outputs are never masked
        if found.reason is not None or not producers:
            kept_whole[found.name] = found.reason or "its channels are those of the image"
            continue
        name = min(producers, key=order.index)
        if found.size < 2:
            kept_whole[name] = "it has one channel, or its channels were lost on the way"
            continue
        group = Group(name, found.size, found.members, _points(found.members, modules, trace))
        if scope == "block" and len(producers) > 1:
            first = min(producers, key=trace.order.index)
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
            f"expected a network with at least one maskable group of channels at scope {scope}, got "
            f"{type(network).__name__} with none ({reasons}); try scope all or another network"
        )
    accepted.sort(key=lambda group: order.index(group.name))
    return FoundGroups(tuple(accepted), kept_whole)
