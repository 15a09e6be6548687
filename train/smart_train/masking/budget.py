"""How much each group of channels, or each layer of single weights, keeps of what the density leaves in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd, prod

from torch import nn

from smart_train.masking.groups import Group
from smart_train.masking.parts import Part
from smart_train.masking.structure import Structure

_HALVINGS = 200  # of an interval of floats: more than it takes to be exact


def kept_of_groups(structure: Structure, groups: Sequence[Group], modules: Mapping[str, Part]) -> tuple[int, ...]:
    """Return how many of its ``size`` each group keeps on every path.

    With ``uniform`` each keeps the density, rounded up to whole steps of ``align``. With ``erk`` a group's density is
    in proportion to :func:`sparsity_weight` of the layers that make its channels, at most 1 and at least one step,
    and all groups together keep as many channels as with ``uniform``, or less than one step fewer.

    Args:
        structure: density, alignment and budget.
        groups: the groups.
        modules: the network's, by name.
    """
    uniform = [structure.kept(group.size, bundle=group.bundle) for group in groups]
    if structure.budget == "uniform" or not structure.pattern.channels or not groups:
        return tuple(uniform)
    steps = [structure.align // gcd(structure.align, group.bundle) * group.bundle for group in groups]
    sizes = [group.size * group.bundle for group in groups]
    shared = share_out(
        sum(kept * group.bundle for kept, group in zip(uniform, groups, strict=True)),
        sizes=sizes,
        weights=[sparsity_weight(_shapes_of_makers(group, modules)) for group in groups],
        floors=[min(step, size) for step, size in zip(steps, sizes, strict=True)],
        steps=steps,
    )
    return tuple(count // group.bundle for count, group in zip(shared, groups, strict=True))


def kept_of_layers(structure: Structure, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return how many weights each layer keeps on every path with ``erk``; nothing where that follows from its shape.

    As :func:`kept_of_groups`, of weights; a layer keeps at least one weight a filter, where ``uniform`` leaves it that.

    Args:
        structure: density and budget; its pattern has no density of its own.
        shapes: of the masked layers' weights.
    """
    pattern = structure.pattern.weights
    if structure.budget == "uniform" or structure.pattern.channels or pattern is None:
        return {}
    sizes = [prod(shape) for shape in shapes.values()]
    uniform = [structure.kept_weights(shape) for shape in shapes.values()]
    shared = share_out(
        sum(uniform),
        sizes=sizes,
        weights=[sparsity_weight([shape]) for shape in shapes.values()],
        floors=[min(shape[0], kept) for shape, kept in zip(shapes.values(), uniform, strict=True)],
        steps=[1] * len(sizes),
    )
    return {
        name: pattern.kept(shape, density=count / size)
        for (name, shape), count, size in zip(shapes.items(), shared, sizes, strict=True)
    }


def sparsity_weight(shapes: Sequence[Sequence[int]]) -> float:
    """Return what a layer's density is in proportion to: (in + out + kernel's sides) / (in * out * kernel).

    So small layers stay denser than large ones: Erdos-Renyi-kernel (Evci et al. 2020, arXiv 1911.11134, section 3,
    after Mocanu et al. 2018). Of several layers both sums are taken over all.

    Args:
        shapes: of their weights, (out, in, ...).
    """
    return sum(map(sum, shapes)) / sum(map(prod, shapes))


def share_out(
    total: int, *, sizes: Sequence[int], weights: Sequence[float], floors: Sequence[int], steps: Sequence[int]
) -> list[int]:
    """Return counts in proportion to ``weights`` times ``sizes``, within floors and sizes, that sum up to ``total``.

    Counts are whole ``steps``, or the whole size; where the steps do not fit, less than one of them is left over.

    Args:
        total: between the sum of floors and that of sizes.
        sizes: the most that each may have.
        weights: above 0.
        floors: the least, a step or the whole size.
        steps: what counts are multiples of.
    """

    def wanted(scale: float) -> list[float]:
        return [
            min(size, max(floor, scale * weight * size))
            for size, weight, floor in zip(sizes, weights, floors, strict=True)
        ]

    low, high = 0.0, 1 / min(weights)  # where all have their sizes
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(wanted(middle)) <= total else (low, middle)
    ideal = wanted(low)
    found = [
        size if want >= size else max(floor, int(want + 1e-6) // step * step)
        for want, size, floor, step in zip(ideal, sizes, floors, steps, strict=True)
    ]
    while True:
        left = total - sum(found)
        more = [min(step, size - count) for step, size, count in zip(steps, sizes, found, strict=True)]
        fit = [i for i, add in enumerate(more) if 0 < add <= left]
        if not fit:
            return found
        best = max(fit, key=lambda i: ideal[i] - found[i])
        found[best] += more[best]


def _shapes_of_makers(group: Group, modules: Mapping[str, Part]) -> list[Sequence[int]]:
    """Return the shapes of the weights that make a group's channels, or where there are none that read them."""
    layers = {m.module: (m.axis, modules.get(m.module)) for m in reversed(group.members)}
    shapes: dict[str, list[Sequence[int]]] = {
        axis: [
            tuple(layer.weight.shape)
            for found, layer in layers.values()
            if (found == "in") == (axis == "in") and isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        for axis in ("out", "in")
    }
    return shapes["out"] or shapes["in"] or [(1,)]  # of norms alone: as small a layer as there may be
