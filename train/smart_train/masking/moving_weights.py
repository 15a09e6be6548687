"""The masks of single weights while they move: what each weight is worth, and how many stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from smart_train.masking.layers import Expert, expert_at, weight_at
from smart_train.masking.mode import MaskMode, Masks
from smart_train.masking.moving_channels import clear_
from smart_train.masking.network import SmartNetwork
from smart_train.masking.pattern import WeightPattern
from smart_train.masking.plan import MOMENTUM, MaskPlan, gradual_count
from smart_train.masking.wanted import Wanted
from smart_train.masking.weight_masks import Sliced

_Means = dict[str, dict[str, Tensor]]  # per path and layer


class WeightMasks(Masks):
    """The weight masks of every path of ``net``; a place is a layer. The channel masks must have moved before.

    While they close they are chosen anew at each update, from all weights of a layer: what is masked keeps its value
    (on the other path it may be in use) and may come back while others shrink, as in Zhu and Gupta 2017,
    arXiv 1710.01878. The schedule says how many weights stay in all, and the structure's pattern which.

    A weight's magnitude is its absolute value times the root mean square of its input on the path (Wanda, Sun et al.
    2023, arXiv 2306.11695): the absolute value alone is the same on all paths, and so would be their masks.

    Args:
        net: says how many weights are kept.
        plan: the score.
        mode: what moves them.
        wanted: what paths want back, where ``mode`` brings anything back.
        generator: of random starts, on the CPU.
        from_weights: start from the absolute values of the weights instead, as they were trained before.
    """

    most_updates = 100  # choosing among millions takes as long as a training step

    def __init__(
        self,
        net: SmartNetwork,
        *,
        plan: MaskPlan,
        mode: MaskMode,
        wanted: Wanted | None,
        generator: torch.Generator,
        from_weights: bool,
    ) -> None:
        self.paths, self.places = net.path_names, len(net.weight_layers)
        self._net, self._wanted = net, wanted
        self._generator, self._from_weights = generator, from_weights
        self._by_gradient = plan.score == "gradient"
        self._hooks: list[RemovableHandle] = []
        moves = mode.frozen > 0
        # Running means: of |dL/dm|, and of the square of each input channel.
        self._absolute = self._means(lambda w: w, wanted=moves and self._by_gradient)
        by_size = moves and not self._by_gradient
        self._power = self._means(lambda w: w.movedim(1, 0).flatten(1)[:, 0], wanted=by_size)

    def _means(self, part: Callable[[Tensor], Tensor], *, wanted: bool) -> _Means:
        names = self._net.weight_layers if wanted else ()
        return {path: {name: torch.zeros_like(part(self._weight(path, name))) for name in names} for path in self.paths}

    def _layer(self, path: str, name: str) -> Expert:
        return expert_at(self._net.path(path).network, name)

    def _weight(self, path: str, name: str) -> Tensor:
        return weight_at(self._net.path(path).network, name).detach()

    def _name(self, place: int) -> str:
        return self._net.weight_layers[place]

    @property
    def _pattern(self) -> WeightPattern:
        pattern = self._net.structure.pattern.weights
        assert pattern is not None, "only a network with weight layers asks"
        return pattern

    def _sliced(self, path: str, name: str) -> Sliced:
        keep_in, weight = self._net.kept_inputs(path)[name], self._weight(path, name)
        return Sliced(weight.shape, keep_in=keep_in.to(weight.device), block=self._net.structure.pattern.block)

    def mask(self, path: str, place: int) -> Tensor:
        """Return a mask, bool of the weight's shape."""
        return self._net.weight_mask(path, self._name(place))

    def first(self, path: str, place: int) -> Tensor:
        """Return absolute values, or random numbers."""
        weight = self._weight(path, self._name(place))
        if self._from_weights:
            return weight.abs()
        return torch.rand(weight.shape, generator=self._generator).to(weight.device)

    def scores(self, path: str, place: int) -> Tensor:
        """Return the running mean of |dL/dm|, or the magnitude."""
        name = self._name(place)
        if self._by_gradient:
            return self._absolute[path][name]
        weight, power = self._weight(path, name), self._power[path][name]
        return weight.abs() * power.sqrt().view(1, -1, *[1] * (weight.dim() - 2))

    def keep(self, path: str, place: int, scores: Tensor) -> None:
        """Keep the weights with the highest scores, as many as the structure says."""
        self.shrink(path, place, 1.0, by=lambda _path, _place: scores)

    def shrink(self, path: str, place: int, progress: float, *, by: Callable[[str, int], Tensor]) -> None:
        """Choose a mask anew with as many weights as stay at ``progress``."""
        name = self._name(place)
        sliced = self._sliced(path, name)
        part = sliced.part(by(path, place))
        count = gradual_count(part.numel(), target=self._net.kept_weights(name, part.shape), progress=progress)
        self._net.set_weight_mask(path, name, sliced.mask(self._pattern.keep(part, count=count)))

    def replace(self, path: str, place: int, rate: float) -> None:
        """Replace the weakest of the kept weights, ``rate`` of them; the pattern says how."""
        assert self._wanted is not None, "only a mode that brings something back replaces"
        name = self._name(place)
        sliced = self._sliced(path, name)
        whole = (self.mask(path, place), self.scores(path, place), self._wanted.of_weights(path, name))
        mask, scores, wanted = map(sliced.part, whole)
        count = self._net.kept_weights(name, mask.shape)
        replaced = self._pattern.replace(mask, scores, wanted, count=count, rate=rate)
        self._net.set_weight_mask(path, name, sliced.mask(replaced))

    @torch.no_grad()
    def clear_(self, place: int, which: Tensor, *, optimizer: torch.optim.Optimizer) -> None:
        """Set ``which`` weights to zero."""
        weight = weight_at(self._net.path(self.paths[0]).network, self._name(place))
        clear_(weight, which, optimizer=optimizer)

    def watch(self, moving: bool) -> None:
        """Collect what the scores need while the masks are ``moving``; call it after each move.

        A gate copies its mask when it is made. Inputs are looked at in training passes only, not in an attack's.
        """
        for path, place in self.each:
            self._layer(path, self._name(place)).watch_weight_gate(moving and self._by_gradient)
        if not moving:
            for handle in self._hooks:
                handle.remove()
            self._hooks = []
        elif not self._hooks:
            self._hooks = [
                self._layer(path, name).register_forward_pre_hook(_power_hook(mean))
                for path, means in self._power.items()
                for name, mean in means.items()
            ]

    def after_backward(self) -> None:
        """Take in the gate gradients of this step."""
        for path, means in self._absolute.items():
            for name, mean in means.items():
                gate = self._layer(path, name).weight_gate
                if gate is None or gate.grad is None:
                    continue
                # With 16-mixed a step whose scaled loss overflows is skipped: its infinities must not stay here.
                gradient = torch.nan_to_num(gate.grad, nan=0.0, posinf=0.0, neginf=0.0)
                mean.mul_(MOMENTUM).add_(gradient.abs(), alpha=1 - MOMENTUM)
                gate.grad = None

    def state(self) -> dict[str, Any]:
        """Return what resuming needs beside the masks themselves."""
        return {"absolute": self._absolute, "power": self._power}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        for key, means in self.state().items():
            for path, layers in means.items():
                for name, mean in layers.items():
                    mean.copy_(state[key][path][name])


def _power_hook(mean: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that takes each input channel's mean square into the running ``mean`` (in,)."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not layer.training or not torch.is_grad_enabled():  # statistics may be measured anew, in train mode
            return
        features = inputs[0].detach().float()
        axis = -1 if isinstance(layer, nn.Linear) else 1
        power = features.square().movedim(axis, 0).flatten(1).mean(dim=1)
        mean.mul_(MOMENTUM).add_(torch.nan_to_num(power, nan=0.0, posinf=0.0), alpha=1 - MOMENTUM)

    return hook
