"""Which channels must be kept or removed together, found by Torch-Pruning and believed only after a numerical probe.

A group is what a ``channel`` mask selects from. Its members are the places where its channels live: output channels of
a convolution (axis ``out``), input channels of the next (``in``), or both at once (``channel``: batch norm, depthwise
convolution). The mask itself acts at the group's points, the last layers that can zero the channel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from smart_train.errors import NetworkError
from smart_train.layers import Expert, make_expert_
from smart_train.slicing import axis_length, is_depthwise, slice_network

Axis = Literal["out", "in", "channel"]
Scope = Literal["block", "all"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# In float64 a correct slice agrees to rounding (1e-13 seen); a wrong one is off by orders of magnitude more.
PROBE_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Member:
    """One place where a group's channels live.

    Attributes:
        module: dotted module name inside the network.
        axis: which channels of that module.
        indices: int64 (group size, r): the r positions on that axis of each channel (r > 1 behind a flatten).
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
    """Channels that are kept or removed together, named by the first layer that makes them."""

    name: str
    size: int
    members: tuple[Member, ...]
    points: tuple[Point, ...]

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


def _run(network: nn.Module, images: Tensor) -> Tensor:
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
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made_by:
                after[made_by[id(inputs[0])]] = name
            if isinstance(output, Tensor):
                alive.append(output)
                made_by[id(output)] = name

        handles.append(module.register_forward_hook(hook))

    for name, module in network.named_modules():
        if not any(True for _ in module.children()):
            watch(name, module)
    try:
        with torch.no_grad():
            output = _run(network, images)
    finally:
        for handle in handles:
            handle.remove()
    return _Trace(batch_norm_after=after, output_module=made_by.get(id(output)))


def _axis(module: nn.Module, handler: str) -> Axis | None:
    """Return the axis that a Torch-Pruning handler works on, None where this module type is not ours to slice.

    Exact types only, as in :func:`make_expert_`: a subclass computes something of its own.
    """
    kind = type(module)
    if isinstance(module, nn.BatchNorm2d):
        return "channel" if kind is nn.BatchNorm2d and module.affine and module.track_running_stats else None
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "channel" if kind is nn.Conv2d and is_depthwise(module) else None
    if kind not in {nn.Conv2d, nn.Linear}:
        return None
    return "in" if handler == "prune_in_channels" else "out"


def _members(raw: Any, names: dict[nn.Module, str], *, size: int) -> tuple[Member, ...] | str:
    """Read one Torch-Pruning group; a string is the reason why it cannot be used."""
    members: dict[tuple[str, Axis], list[list[int]]] = {}
    for item in raw:
        module = item.dep.target.module
        if module not in names:  # an elementwise, concat or reshape node, which has nothing to slice
            if type(module).__module__.startswith("torch_pruning"):
                continue
            return f"it reaches {item.dep.target.name}, which is no module of the network"
        axis = _axis(module, item.dep.handler.__name__)
        if axis is None:
            return f"it reaches {names[module]} ({type(module).__name__}), which cannot be sliced"
        rows = members.setdefault((names[module], axis), [[] for _ in range(size)])
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            if index not in rows[root]:
                rows[root].append(index)
    found = []
    for (name, axis), rows in members.items():
        if len({len(row) for row in rows}) != 1:
            return f"its channels take unequal shares of {name}"
        found.append(Member(name, axis, torch.tensor(rows, dtype=torch.int64)))
    return tuple(found)


def _points(members: Sequence[Member], modules: dict[str, nn.Module], trace: _Trace) -> tuple[Point, ...]:
    """Put the mask after the batch norm where one follows, else at the layer that makes the channel."""
    norms = {m.module for m in members if isinstance(modules[m.module], nn.BatchNorm2d)}
    points = []
    fed = set()
    for member in members:
        if member.axis == "in" or member.module in norms:
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
        self._plain = copy.deepcopy(network).to(device="cpu", dtype=torch.float64).eval()
        _randomise_(self._plain, self._generator)
        self._masked = copy.deepcopy(self._plain)
        make_expert_(self._masked)

    @torch.no_grad()
    def difference(self, group: Group) -> float:
        """Return max|a-b| / max(1, max|a|) between masking and slicing ``group`` to random channels, half of them."""
        keep = torch.zeros(group.size, dtype=torch.bool)
        keep[torch.randperm(group.size, generator=self._generator)[: max(1, group.size // 2)]] = True
        apply_mask_(self._masked, group, keep)
        expected = self._masked(self._images)
        apply_mask_(self._masked, group, torch.ones_like(keep))
        try:
            got = slice_network(self._plain, [group], [keep])(self._images)
        except Exception:  # a forward may say in its own way that shapes no longer fit: this group cannot be sliced
            return float("inf")
        if got.shape != expected.shape:
            return float("inf")
        return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))


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
    names = {module: name for name, module in modules.items()}
    with _quiet_graph(network):
        trace = _trace(network, images)
        try:
            graph = tp.DependencyGraph().build_dependency(network, example_inputs=images)
            raws = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
        except Exception as error:  # tracing meets whatever a network's author wrote
            raise NetworkError(
                f"expected a network whose channel dependencies can be traced, got {type(network).__name__}, where "
                f"tracing stopped: {error}; replace the operation it names"
            ) from error
    probe = Probe(network, images)
    accepted: list[Group] = []
    kept_whole: dict[str, str] = {}
    order = list(modules)
    for raw in raws:
        size = len(raw[0].idxs)
        name = names.get(raw[0].dep.target.module, raw[0].dep.target.name)
        members = _members(raw, names, size=size)
        if isinstance(members, str):
            kept_whole[name] = members
            continue
        producers = [m for m in members if m.axis == "out"]
        if not producers:
            kept_whole[name] = "its channels are those of the image"
            continue
        if any(m.module == trace.output_module for m in producers):
            continue  # the classifier's own outputs are never masked
        if scope == "block" and len(producers) != 1:
            kept_whole[name] = "residual stream (scope block)"
            continue
        name = min((m.module for m in producers), key=order.index)
        group = Group(name=name, size=size, members=members, points=_points(members, modules, trace))
        difference = probe.difference(group)
        if not difference <= PROBE_TOLERANCE:  # nan is a difference too
            kept_whole[name] = f"slicing it changes the result by {difference:.1g} where masking does not"
            continue
        accepted.append(group)
    if not accepted:
        reasons = "; ".join(f"{name}: {why}" for name, why in kept_whole.items()) or "it has no hidden channels"
        raise NetworkError(
            f"expected a network with at least one maskable group of channels at scope {scope}, got "
            f"{type(network).__name__} with none ({reasons}); try scope all or another network"
        )
    accepted.sort(key=lambda group: order.index(group.name))
    return FoundGroups(tuple(accepted), kept_whole)
