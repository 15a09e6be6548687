"""How much of a network each path uses, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smart_train.network import SmartNetwork
from smart_train.slicing import kept_channels


@dataclass(frozen=True)
class Densities:
    """Fractions in (0, 1].

    Attributes:
        channels: per path, kept channels over all channels of the masked groups.
        parameters: per path, the parameters it uses over those of the plain network.
        union: parameters that any path uses (each path's batch norms counted as its own) over those of the unmasked
            network with a batch norm set for each path.
    """

    channels: dict[str, float]
    parameters: dict[str, float]
    union: float


def used_parameters(net: SmartNetwork, *, path: str) -> dict[str, Tensor]:
    """Return which elements of each parameter ``path`` uses, by its name inside the network.

    Each is bool of the parameter's shape, but with 1 for the sides of a kernel, which is used whole or not at all.
    """
    network = net.path(path).network
    modules = dict(network.named_modules())
    kept = kept_channels(modules, net.groups, net.masks(path))
    used = {
        name: torch.ones((*p.shape[:2], *[1] * (p.dim() - 2)), dtype=torch.bool)
        for name, p in network.named_parameters()
    }
    for (name, side), keep in kept.items():
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


def batch_norm_parameters(network: nn.Module) -> set[str]:
    """Return the names of the parameters that every path has for itself."""
    return {
        f"{name}.{own}" if name else own
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for own, _ in module.named_parameters(recurse=False)
    }


def densities(net: SmartNetwork) -> Densities:
    """Count what each path and all of them together use."""
    used = {path: used_parameters(net, path=path) for path in net.path_names}
    first = net.path(net.path_names[0]).network
    own = batch_norm_parameters(first)
    stored, everything, total = 0, 0, 0
    of_path = dict.fromkeys(net.path_names, 0)
    for name, parameter in first.named_parameters():
        parts = {path: used[path][name] for path in net.path_names}
        kernel = parameter.numel() // next(iter(parts.values())).numel()
        counts = {path: kernel * int(part.sum()) for path, part in parts.items()}
        for path, count in counts.items():
            of_path[path] += count
        total += parameter.numel()
        if name in own:
            stored += sum(counts.values())
            everything += parameter.numel() * len(parts)
        else:
            stored += kernel * int(torch.stack(list(parts.values())).any(dim=0).sum())
            everything += parameter.numel()
    channels = sum(group.size for group in net.groups)
    return Densities(
        channels={path: sum(int(m.sum()) for m in net.masks(path)) / channels for path in net.path_names},
        parameters={path: count / total for path, count in of_path.items()},
        union=stored / everything,
    )


@torch.no_grad()
def zero_unused_(net: SmartNetwork, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Set the shared weights that no path uses, and their optimiser momentum, to zero, in place.

    With both zero, and no gradient, weight decay leaves them at zero.
    """
    used = {path: used_parameters(net, path=path) for path in net.path_names}
    first = net.path(net.path_names[0]).network
    own = batch_norm_parameters(first)
    for name, parameter in first.named_parameters():
        if name in own:
            continue
        keep = torch.stack([used[path][name] for path in net.path_names]).any(dim=0).to(parameter.device)
        parameter.mul_(keep)
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.mul_(keep)
