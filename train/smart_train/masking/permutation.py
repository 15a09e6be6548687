"""Channels put in another order, so that N:M keeps more of the weights; it costs nothing at run time.

A group's channels are permuted wherever they live, in the layers that make them and in those that read them, so the
network computes the same. Only which channels share a block of M changes (Pool and Yu 2021, "Channel Permutations for
N:M Sparsity", NeurIPS). The search is greedy: two channels change places where more magnitude is kept afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smart_train.errors import ConfigError, NetworkError
from smart_train.masking.finding import find_groups
from smart_train.masking.groups import Group
from smart_train.masking.layers import check_weights, weight_at
from smart_train.masking.parts import is_depthwise
from smart_train.masking.pattern import WeightPattern
from smart_train.masking.structure import Structure
from smart_train.masking.tracing import run_classifier, traceable
from smart_train.masking.weight_masks import find_weight_layers

TRIALS = 20  # swaps tried for each channel of a group: more gain little
TOLERANCE = 1e-3  # of the scores: float32 sums in another order; a wrong permutation gives other scores altogether


@dataclass(frozen=True)
class Gain:
    """The fraction of a layer's magnitude (sum of absolute weights) that the best pattern keeps, before and after."""

    before: float
    after: float


def search_order(columns: Tensor, *, pattern: WeightPattern, generator: torch.Generator) -> Tensor:
    """Return an order int64 (channels,) of the rows of ``columns`` in which blocks of M keep more magnitude.

    Args:
        columns: (channels, rows) absolute weights; channels are a multiple of M.
        pattern: N and M.
        generator: of the swaps that are tried, on the CPU.
    """
    size, m = len(columns), pattern.block
    order = torch.arange(size)
    kept = pattern.kept_magnitude(columns.view(-1, m, columns.shape[1]))
    for first, second in torch.randint(size, (TRIALS * size, 2), generator=generator).tolist():
        stripes = [first // m, second // m]
        if stripes[0] == stripes[1]:
            continue
        places = torch.tensor([range(stripe * m, stripe * m + m) for stripe in stripes])
        swapped = order.clone()
        swapped[first], swapped[second] = order[second], order[first]
        now = pattern.kept_magnitude(columns[swapped[places]])
        if float(now.sum()) > float(kept[stripes].sum()) * (1 + 1e-6):  # no swap back and forth within rounding
            order, kept[stripes] = swapped, now
    return order


def permute_channels_(
    network: nn.Module, example: Tensor, *, structure: Structure, generator: torch.Generator
) -> dict[str, Gain]:
    """Put the channels of a plain ``network`` in an order in which ``structure`` keeps more magnitude, in place.

    Groups of every scope are permuted, residual streams too; not those that reach more than plain convolutions, linear
    layers and batch norms, and not those whose channels no layer with a pattern reads as they are.

    Returns:
        For each layer with a pattern, what it keeps before and after.

    Raises:
        ConfigError: if the structure has no pattern, or blocks that depend on channels that training removes.
        NetworkError: if no group of channels is found, or the network gives other scores afterwards.
    """
    pattern = structure.pattern.weights
    if structure.pattern.channels or pattern is None:
        raise ConfigError(
            f"channels cannot be permuted for {structure.name}: its blocks are not known before the training; leave "
            f"--permute out, or use a structure such as 2:4"
        )
    check_weights(network)
    names = find_weight_layers(network, example, structure=structure, groups=()).masked
    layers = {name: weight_at(network, name) for name in names}
    before = {name: pattern.kept_share(weight) for name, weight in layers.items()}
    images = torch.rand(example.shape, generator=generator)
    with traceable(network), torch.no_grad():
        expected = run_classifier(network, images)
    for group in find_groups(network, example, scope="all").groups:
        readers = _readers(group, layers)
        if readers and _is_plain(group, network):
            columns = torch.cat([w.detach().abs().transpose(0, 1).flatten(1) for w in readers], dim=1)
            order = search_order(columns, pattern=pattern, generator=generator)
            _permute_(network, group, order)
    with traceable(network), torch.no_grad():
        got = run_classifier(network, images)
    if not float((got - expected).abs().max() / expected.abs().max().clamp(min=1)) <= TOLERANCE:  # nan is a difference
        raise NetworkError(
            f"expected {type(network).__name__} to compute the same with its channels in another order, got other "
            f"scores; train it without --permute"
        )
    return {name: Gain(before[name], pattern.kept_share(weight)) for name, weight in layers.items()}


def _readers(group: Group, layers: dict[str, Tensor]) -> Sequence[Tensor]:
    """Return the weights with a pattern whose input channels are those of ``group``, one for one."""
    every = torch.arange(group.size)
    return [
        layers[m.module]
        for m in group.members
        if m.axis == "in" and m.module in layers and torch.equal(m.indices.flatten(), every)
        if layers[m.module].shape[1] == group.size
    ]


def _is_plain(group: Group, network: nn.Module) -> bool:
    modules = dict(network.named_modules())
    found = [modules.get(member.module) for member in group.members]
    return all(
        type(m) in {nn.Linear, nn.BatchNorm2d} or (type(m) is nn.Conv2d and (m.groups == 1 or is_depthwise(m)))
        for m in found
    )


@torch.no_grad()
def _permute_(network: nn.Module, group: Group, order: Tensor) -> None:
    """Let channel ``order[i]`` of ``group`` be channel i, in every layer where it lives, in place."""
    for member in group.members:
        module = network.get_submodule(member.module)
        to, source = member.indices.flatten(), member.indices[order].flatten()
        if member.axis == "in":
            weight = weight_at(network, member.module)
            weight[:, to] = weight[:, source]
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dim() > 0:  # a batch norm counts its batches too
                tensor[to] = tensor[source]
