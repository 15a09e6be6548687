"""What the paths of a checkpoint or a bundle cost: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smart_runtime.bundle.manifest import Manifest
from smart_train.masking.accounting import structure_report, used_parameters
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork
from smart_train.masking.parts import axis_length


@dataclass(frozen=True)
class PathCost:
    """One path, for one image.

    Attributes:
        parameters: that it uses.
        macs: multiply-accumulates of its convolutions and linear layers.
        bytes: of its graph and weights, None for a checkpoint, which has none.
        dense: whether nothing of its network is masked.
    """

    parameters: int
    macs: int
    bytes: int | None
    dense: bool


@dataclass(frozen=True)
class Cost:
    """All paths; ``stored`` counts the parameters, and ``bytes`` the bytes, that several of them share once."""

    stored: int
    bytes: int | None
    paths: Mapping[str, PathCost]

    @property
    def record(self) -> dict[str, Any]:
        """It as plain values, for reports."""
        paths = {path: asdict(cost) for path, cost in self.paths.items()}
        return {"stored_parameters": self.stored, "stored_bytes": self.bytes, "paths": paths}


def cost_of_network(net: SmartNetwork, *, input_shape: tuple[int, int, int]) -> Cost:
    """Count what each path of a masked network uses, batch norms included; its device stays as it is.

    What masks remove channel by channel is not counted; layers of which single weights are masked count whole in MACs,
    since most engines multiply by zeros too.
    """
    stored: dict[int, Tensor] = {}  # by parameter: paths share the very same ones
    sizes: dict[int, int] = {}
    paths = {}
    for path in net.path_names:
        network, count, total = net.path(path).network, 0, 0
        for name, used in used_parameters(net, path=path).items():
            parameter = network.get_parameter(name)
            each = parameter.numel() // used.numel()
            key = id(parameter)
            stored[key] = stored[key] | used if key in stored else used
            sizes[key] = each
            count += each * int(used.sum())
            total += parameter.numel()
        macs = _macs(net, path, input_shape=input_shape)
        paths[path] = PathCost(parameters=count, macs=macs, bytes=None, dense=count == total)
    return Cost(sum(sizes[key] * int(used.sum()) for key, used in stored.items()), None, paths)


def _macs(net: SmartNetwork, path: str, *, input_shape: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of one image, by running a black one."""
    tree = net.path(path)
    layers = {
        name: module for name, module in tree.network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    places: Counter[str] = Counter()  # how often the whole weight of a layer is applied

    def counting(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            places[name] += output.numel() // axis_length(layer, "out")

        return layer.register_forward_hook(hook)

    handles = [counting(name, layer) for name, layer in layers.items()]
    device = next(tree.parameters()).device
    try:
        with attack_mode(tree), torch.no_grad(), torch.random.fork_rng(devices=[]):
            tree(torch.zeros(1, *input_shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return sum(places[layer.name] * layer.weights for layer in structure_report(net, path=path))


def cost_of_bundle(manifest: Manifest) -> Cost:
    """Return what the manifest says of the paths' graphs; graphs in the same file count once."""
    graphs = {graph.file: graph for graph in manifest.paths.values()}
    return Cost(
        sum(graph.parameters for graph in graphs.values()),
        sum(graph.bytes for graph in graphs.values()),
        {
            name: PathCost(graph.parameters, graph.macs, graph.bytes, dense=graph.parameter_density == 1)
            for name, graph in manifest.paths.items()
        },
    )
