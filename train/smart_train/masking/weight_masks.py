"""Masks of single weights: which layers have them, and which weights a pattern or a density keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smart_train.masking.budget import kept_of_groups
from smart_train.masking.groups import Group
from smart_train.masking.layers import expert_at, make_expert_, make_plain_, weight_at
from smart_train.masking.parts import axis_length, is_depthwise
from smart_train.masking.slicing import kept_channels
from smart_train.masking.structure import Structure
from smart_train.masking.tracing import run_classifier
from smart_train.masking.trial import copied, trial_of

_HALF = 0.5


@dataclass(frozen=True)
class WeightLayers:
    """The layers whose single weights are masked, in the order of the network, and the others with the reason."""

    masked: tuple[str, ...]
    dense: dict[str, str]


@torch.no_grad()
def _running_order(network: nn.Module, images: Tensor) -> dict[str, bool]:
    """Return the convolutions and linear layers that a forward pass runs, as they first run, and which read the image.

    Those are the ones that read nothing that another layer made, several in a network with several stems. Every
    layer's output is replaced by NaN, which goes through whatever is computed from it.
    """
    order: dict[str, bool] = {}
    trial = copied(network).eval()  # batch norms must not move

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            order.setdefault(name, not bool(inputs[0].isnan().any()))
            return torch.full_like(output, torch.nan)

        module.register_forward_hook(hook)

    for name, module in trial.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            watch(name, module)
    run_classifier(trial, images)
    return order


def find_weight_layers(
    network: nn.Module, example: Tensor, *, structure: Structure, groups: Sequence[Group]
) -> WeightLayers:
    """Say which layers' single weights ``structure`` masks, and of all other layers with weights why it does not.

    NVIDIA's ASP (apex.contrib.sparsity) takes every Conv2d and Linear whose output channels are a multiple of 8 and
    input channels of 16, which leaves out the first convolution and most classifiers by their sizes. Here these two are
    left out by what they are (every layer that reads the image itself, where there are several), as the few weights in
    them decide much, and sizes by the pattern and by the target.

    Args:
        network: a plain classifier on the CPU; it is not changed.
        example: float (N, C, H, W), an input it takes.
        structure: the pattern is judged by the input channels that are left after slicing.
        groups: the groups whose channels it masks.

    Raises:
        NetworkError: if the network does not run on the example or is no classifier.
    """
    reads_image = _running_order(network, torch.zeros_like(example, dtype=torch.float32))
    last = list(reads_image)[-1:]
    modules = dict(network.named_modules())
    counts = kept_of_groups(structure, groups, modules)
    some = [torch.arange(group.size) < count for group, count in zip(groups, counts, strict=True)]  # only these count
    kept = kept_channels(modules, groups, some)

    def channels(name: str, side: str) -> int:
        keep = kept.get((name, side))
        return axis_length(modules[name], side) if keep is None else int(keep.sum())

    pattern, block, least = structure.pattern.weights, structure.pattern.block, structure.min_channels
    assert pattern is not None

    def reason(name: str, module: nn.Conv2d | nn.Linear) -> str | None:
        before, after = channels(name, "in"), channels(name, "out")
        parted = module.groups if isinstance(module, nn.Conv2d) else 1
        checks = (
            (type(module) in {nn.Conv2d, nn.Linear}, f"a {type(module).__name__} may compute something of its own"),
            (name in reads_image, "no forward pass runs it"),
            (not reads_image.get(name), "it reads the image"),
            (last != [name], "it makes the scores"),
            (not is_depthwise(module), "depthwise: one input channel a filter"),
            (parted == 1, f"a convolution in {parted} groups"),
            (before % block == 0, f"its {before} input channels are no multiple of {block}"),
            (
                not pattern.is_too_narrow(min(before, after), least=least),
                f"{before} input and {after} output channels, where fewer than {least} gain nothing",
            ),
        )
        return next((why for holds, why in checks if not holds), None)

    reasons = {
        name: reason(name, module) for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    masked = [name for name, why in reasons.items() if why is None]
    images = torch.rand(example.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if masked and not _masks_are_zeros(network, images, layers=masked):
        for name in masked:
            if not _masks_are_zeros(network, images, layers=[name]):
                reasons[name] = "masking its weights differs from setting them to zero: something else reads them"
    return WeightLayers(
        masked=tuple(name for name, why in reasons.items() if why is None),
        dense={name: why for name, why in reasons.items() if why is not None},
    )


@torch.no_grad()
def _masks_are_zeros(network: nn.Module, images: Tensor, *, layers: Sequence[str]) -> bool:
    """Whether random weight masks in ``layers`` give the scores that zeros in their weights give, as a fold assumes."""
    tried = trial_of(network, images)
    trial, images = tried.network, images.to(tried.dtype)
    make_expert_(trial)
    generator = torch.Generator().manual_seed(0)
    for name in layers:
        mask = torch.rand(weight_at(trial, name).shape, generator=generator) < _HALF
        expert_at(trial, name).set_weight_mask(mask)
    expected = run_classifier(trial, images)
    make_plain_(trial)
    found = (run_classifier(trial, images) - expected).abs().max() / expected.abs().max().clamp(min=1)
    return float(found) <= tried.tolerance


class Sliced:
    """One layer's weight as its pattern sees it: the input channels that a path keeps, up to the last whole block.

    Kept channels behind the last whole block are masked in no way; at the masks' target there are no such.

    Args:
        shape: of the weight, (out, in, ...).
        keep_in: bool (in,), the input channels that are left after slicing.
        block: input channels that belong together.
    """

    def __init__(self, shape: torch.Size, *, keep_in: Tensor, block: int) -> None:
        kept = torch.nonzero(keep_in).flatten()
        whole = len(kept) // block * block
        self._shape = shape
        self._channels, self._rest = kept[:whole], kept[whole:]

    def part(self, tensor: Tensor) -> Tensor:
        """Return the values of ``tensor``, of the weight's shape, as (out, kept, ...)."""
        return tensor[:, self._channels]

    def mask(self, part: Tensor) -> Tensor:
        """Return bool ``part`` (out, kept, ...) in the weight's shape, false in the channels that are not kept."""
        mask = torch.zeros(self._shape, dtype=torch.bool, device=part.device)
        mask[:, self._rest] = True
        mask[:, self._channels] = part
        return mask


def pattern_holds(mask: Tensor, *, keep_in: Tensor, structure: Structure, count: int | None = None) -> bool:
    """Whether the pattern allows ``mask`` (bool, (out, in, ...)) in the order that slicing to ``keep_in`` gives.

    Outside of the channels in ``keep_in`` nothing may be kept; inside ``count`` weights are, by default what a uniform
    budget leaves.
    """
    pattern = structure.pattern.weights
    if int(keep_in.sum()) % structure.pattern.block or bool(mask[:, ~keep_in].any()):
        return False
    sliced = mask[:, keep_in]
    return pattern is None or pattern.holds(
        sliced, count=structure.kept_weights(sliced.shape) if count is None else count
    )


def kept_inputs(
    layers: Iterable[str], *, modules: Mapping[str, nn.Module], groups: Sequence[Group], keeps: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return, for each of ``layers``, which input channels are left when each group is sliced to its ``keeps``.

    Each is bool (in,) on the CPU.
    """
    kept = kept_channels(modules, groups, keeps)
    return {
        name: kept.get((name, "in"), torch.ones(axis_length(modules[name], "in"), dtype=torch.bool)) for name in layers
    }
