"""How much of a network each path uses, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smart_common.mask_info import GroupOverlap, MaskOverlap
from smart_train.masking.layers import batch_norm_parameters
from smart_train.masking.network import SmartNetwork
from smart_train.masking.parts import axis_length, parts
from smart_train.masking.slicing import kept_channels


@dataclass(frozen=True)
class Densities:
    """Fractions above 0.

    Attributes:
        kept: per path, see :func:`density`.
        parameters: per path, the parameters it uses over those of the plain network.
        union: parameters that any path uses (what it has for itself counted for each) over those of the unmasked
            network with a batch norm set for each path; above 1 where paths share no weights.
        overlap: what the paths' masks have in common; None of a single path.
    """

    kept: dict[str, float]
    parameters: dict[str, float]
    union: float
    overlap: MaskOverlap | None


def used_parameters(net: SmartNetwork, *, path: str) -> dict[str, Tensor]:
    """Return which elements of each parameter ``path`` uses, by its name inside the network.

    Each is bool of the parameter's shape, but with 1 for the sides of a kernel where no single weights are masked: it
    is used whole or not at all there.
    """
    network = net.path(path).network
    kept = kept_channels(parts(network), net.groups, net.masks(path))
    used = {
        name: torch.ones((*p.shape[:2], *[1] * (p.dim() - 2)), dtype=torch.bool)
        for name, p in network.named_parameters()
    }
    for name, mask in net.weight_masks(path).items():
        used[f"{name}.weight"] = mask.cpu()
    for (name, side), keep in kept.items():
        if name in used:  # a parameter that is no layer's
            used[name].view(-1)[~keep] = False
        if f"{name}.weight" not in used:
            continue
        weight = used[f"{name}.weight"]
        if side == "out":
            weight[~keep] = False
            if f"{name}.bias" in used:
                used[f"{name}.bias"][~keep] = False
        elif weight.dim() > 1 and weight.shape[1] == keep.shape[0]:  # a depthwise weight has one input channel
            weight[:, ~keep] = False
    return used


def density(net: SmartNetwork, *, path: str) -> float:
    """Return the fraction that ``path`` keeps, as :attr:`Structure.density` counts it, in (0, 1].

    Of the channels of all masked groups, or where no channels are masked, of the weights of all masked layers.
    """
    if not net.groups:
        masks = net.weight_masks(path).values()
        return sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    kept = sum(int(mask.sum()) * group.bundle for group, mask in zip(net.groups, net.masks(path), strict=True))
    return kept / sum(group.size * group.bundle for group in net.groups)


def overlap(net: SmartNetwork) -> MaskOverlap | None:
    """Count what the masks of all paths have in common, of what :func:`density` counts; None of a single path.

    That is intersection over union: of each group's channels (of a bundle all of them), or where no channels are
    masked, of each layer's weights.
    """
    paths = net.path_names
    if len(paths) < 2:
        return None
    if net.groups:
        names, bundles = [group.name for group in net.groups], [group.bundle for group in net.groups]
        masks = {path: net.masks(path) for path in paths}
    else:
        names, bundles = list(net.weight_layers), [1] * len(net.weight_layers)
        masks = {path: list(net.weight_masks(path).values()) for path in paths}
    found = []
    for i, (name, bundle) in enumerate(zip(names, bundles, strict=True)):
        each = torch.stack([masks[path][i] for path in paths])
        found.append(
            GroupOverlap(
                name=name,
                size=each[0].numel() * bundle,
                kept={path: int(mask.sum()) * bundle for path, mask in zip(paths, each, strict=True)},
                both=int(each.all(dim=0).sum()) * bundle,
                either=int(each.any(dim=0).sum()) * bundle,
            )
        )
    return MaskOverlap("channels" if net.groups else "weights", tuple(found))


def densities(net: SmartNetwork) -> Densities:
    """Count what each path and all of them together use."""
    used = {path: used_parameters(net, path=path) for path in net.path_names}
    first = net.path(net.path_names[0]).network
    own, norms = net.own_parameters(), batch_norm_parameters(first)
    stored, everything, total = 0, 0, 0
    of_path = dict.fromkeys(net.path_names, 0)
    for name, parameter in first.named_parameters():
        parts = {path: used[path][name] for path in net.path_names}
        kernel = parameter.numel() // next(iter(parts.values())).numel()
        counts = {path: kernel * int(part.sum()) for path, part in parts.items()}
        for path, count in counts.items():
            of_path[path] += count
        total += parameter.numel()
        everything += parameter.numel() * (len(parts) if name in norms else 1)
        if name in own:
            stored += sum(counts.values())
        else:
            stored += kernel * int(torch.stack(list(parts.values())).any(dim=0).sum())
    return Densities(
        kept={path: density(net, path=path) for path in net.path_names},
        parameters={path: count / total for path, count in of_path.items()},
        union=stored / everything,
        overlap=overlap(net),
    )


@torch.no_grad()
def zero_unused_(net: SmartNetwork, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Set the shared weights that no path uses, and their optimiser momentum, to zero, in place.

    With both zero, and no gradient, weight decay leaves them at zero.
    """
    used = {path: used_parameters(net, path=path) for path in net.path_names}
    first = net.path(net.path_names[0]).network
    own = net.own_parameters()
    for name, parameter in first.named_parameters():
        if name in own:
            continue
        keep = torch.stack([used[path][name] for path in net.path_names]).any(dim=0).to(parameter.device)
        parameter.mul_(keep)
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.mul_(keep)


@dataclass(frozen=True)
class LayerStructure:
    """What masks leave of one convolution or linear layer on one path.

    Attributes:
        name: inside the network.
        structure: ``channel``, ``N:M``, ``channel+N:M``, ``unstructured`` or ``dense``: what holds in this layer.
        in_channels, out_channels: as (all, kept).
        weights: weights in the kept channels, those masked one by one included.
        kept: how many of them the path keeps.
        reason: why single weights are not masked, or if the structure is ``channel``, why no channel is; else empty.
    """

    name: str
    structure: str
    in_channels: tuple[int, int]
    out_channels: tuple[int, int]
    weights: int
    kept: int
    reason: str


def structure_report(net: SmartNetwork, *, path: str) -> tuple[LayerStructure, ...]:
    """Say of every convolution and linear layer, in the order of the network, which structure holds in it and why."""
    network = net.path(path).network
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    sides = kept_channels(layers, net.groups, net.masks(path))
    used = used_parameters(net, path=path)
    single = net.structure.name.removeprefix("channel+")
    report = []
    for name, layer in layers.items():
        sizes = {side: axis_length(layer, side) for side in ("in", "out")}
        kept = {side: int(sides[name, side].sum()) if (name, side) in sides else sizes[side] for side in sizes}
        sliced, masked = kept != sizes, name in net.weight_layers
        # One that is computed from others, as torch's parametrizations do, is never masked and used whole.
        weight = used.get(f"{name}.weight", torch.ones(layer.weight.shape, dtype=torch.bool))
        count = int(weight.sum()) * (layer.weight.numel() // weight.numel())
        # A grouped convolution's filters read a share of its input channels each.
        inputs = kept["in"] if weight.shape[1] == sizes["in"] else weight.shape[1]
        per_filter = inputs * (layer.weight[0, 0].numel())
        reason = net.dense_layers.get(name, "")
        if not (reason or sliced or masked):
            reason = net.kept_whole.get(name, "no masked group of channels touches it")
        report.append(
            LayerStructure(
                name=name,
                structure="+".join([*(["channel"] if sliced else []), *([single] if masked else [])]) or "dense",
                in_channels=(sizes["in"], kept["in"]),
                out_channels=(sizes["out"], kept["out"]),
                weights=kept["out"] * per_filter,
                kept=count,
                reason=reason,
            )
        )
    return tuple(report)
