"""How the masks of single weights are found, beside those of channels: the part of the mask learner for weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from smart_train.masking.layers import Expert, expert_at, weight_at
from smart_train.masking.network import SmartNetwork
from smart_train.masking.pattern import WeightPattern
from smart_train.masking.plan import MOMENTUM, MaskPlan, gradual_count
from smart_train.masking.weight_masks import Sliced

_Means = dict[str, dict[str, Tensor]]  # per path and layer


class WeightMaskLearner:
    """Moves the weight masks of every path of ``net``; the channel masks must have moved before.

    In ``gradual`` they are chosen anew at each update, from all weights of a layer: what is masked keeps its value (on
    the other path it may be in use) and may come back while others shrink, as in Zhu and Gupta 2017, arXiv 1710.01878.
    The schedule says how many weights stay in all, and the structure's pattern which.

    A weight's magnitude is its absolute value times the root mean square of its input on the path (Wanda, Sun et al.
    2023, arXiv 2306.11695): the absolute value alone is the same on all paths, and so would be their masks.

    Args:
        net: its structure says how many weights are kept.
        plan: the mode and the score.
        generator: of random starts, on the CPU.
        from_weights: start from the absolute values of the weights instead, as they were trained before.
    """

    def __init__(
        self, net: SmartNetwork, *, plan: MaskPlan, generator: torch.Generator, from_weights: bool = False
    ) -> None:
        self._net = net
        self._plan = plan
        self._hooks: list[RemovableHandle] = []
        moves = plan.mode != "static"
        # Running means: of |dL/dm|, of dL/dm, and of the square of each input channel.
        self._absolute = self._means(lambda w: w, wanted=moves and plan.score == "gradient")
        self._signed = self._means(lambda w: w, wanted=plan.mode == "regrow")
        by_size = moves and plan.score == "magnitude"
        self._power = self._means(lambda w: w.movedim(1, 0).flatten(1)[:, 0], wanted=by_size)
        if plan.mode == "gradual":
            return
        for path, name in self._each:
            weight = self._weight(path, name)
            chance = torch.rand(weight.shape, generator=generator).to(weight.device)
            self._choose(path, name, weight.abs() if from_weights else chance, progress=1.0)

    def _means(self, part: Callable[[Tensor], Tensor], *, wanted: bool) -> _Means:
        layers = self._net.weight_layers if wanted else ()
        paths = self._net.path_names
        return {path: {name: torch.zeros_like(part(self._weight(path, name))) for name in layers} for path in paths}

    @property
    def _each(self) -> Iterator[tuple[str, str]]:
        """Every path with every layer."""
        return product(self._net.path_names, self._net.weight_layers)

    def _layer(self, path: str, name: str) -> Expert:
        return expert_at(self._net.path(path).network, name)

    def _weight(self, path: str, name: str) -> Tensor:
        return weight_at(self._net.path(path).network, name).detach()

    @property
    def _pattern(self) -> WeightPattern:
        pattern = self._net.structure.pattern.weights
        assert pattern is not None, "only a network with weight layers asks"
        return pattern

    def _sliced(self, path: str, name: str) -> Sliced:
        keep_in, weight = self._net.kept_inputs(path)[name], self._weight(path, name)
        return Sliced(weight.shape, keep_in=keep_in.to(weight.device), block=self._net.structure.pattern.block)

    def _choose(self, path: str, name: str, scores: Tensor, *, progress: float) -> None:
        """Keep the weights with the highest ``scores``, as many as stay at ``progress``."""
        sliced = self._sliced(path, name)
        part = sliced.part(scores)
        target = self._net.structure.kept_weights(part.shape)
        count = gradual_count(part.numel(), target=target, progress=progress)
        self._net.set_weight_mask(path, name, sliced.mask(self._pattern.keep(part, count=count)))

    def watch(self, moving: bool) -> None:
        """Collect what the scores need while the masks are ``moving``; call it after each move.

        A gate copies its mask when it is made. Inputs are looked at in training mode only: an attack runs in eval mode.
        """
        gates = moving and any(self._absolute[path] or self._signed[path] for path in self._net.path_names)
        for path, name in self._each:
            self._layer(path, name).watch_weight_gate(gates)
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
        for path, name in self._each:
            gate = self._layer(path, name).weight_gate
            if gate is None or gate.grad is None:
                continue
            # With 16-mixed a step whose scaled loss overflows is skipped: its infinities must not stay here.
            gradient = torch.nan_to_num(gate.grad, nan=0.0, posinf=0.0, neginf=0.0)
            if name in self._absolute[path]:
                self._absolute[path][name].mul_(MOMENTUM).add_(gradient.abs(), alpha=1 - MOMENTUM)
            if name in self._signed[path]:
                self._signed[path][name].mul_(MOMENTUM).add_(gradient)
            gate.grad = None

    def shrink(self, progress: float) -> None:
        """Choose every mask anew with as many weights as stay at ``progress`` in [0, 1]."""
        for path, name in self._each:
            self._choose(path, name, self._scores(path, name), progress=progress)

    def replace(self, rate: float) -> None:
        """Replace the weakest of the kept weights, ``rate`` of them, by the most wanted ones; the pattern says how."""
        for path, name in self._each:
            scores, wanted = self._scores(path, name), self._signed[path][name].abs()
            sliced = self._sliced(path, name)
            mask, scores, wanted = map(sliced.part, (self._net.weight_mask(path, name), scores, wanted))
            count = self._net.structure.kept_weights(mask.shape)
            replaced = self._pattern.replace(mask, scores, wanted, count=count, rate=rate)
            self._net.set_weight_mask(path, name, sliced.mask(replaced))

    def _scores(self, path: str, name: str) -> Tensor:
        if self._plan.score == "gradient":
            return self._absolute[path][name]
        weight, power = self._weight(path, name), self._power[path][name]
        return weight.abs() * power.sqrt().view(1, -1, *[1] * (weight.dim() - 2))

    def state(self) -> dict[str, Any]:
        """Return what resuming needs beside the masks themselves."""
        return {"absolute": self._absolute, "signed": self._signed, "power": self._power}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        for key, means in self.state().items():
            for path, layers in means.items():
                for name, mean in layers.items():
                    mean.copy_(state[key][path][name])


def _power_hook(mean: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that takes each input channel's mean square into the running ``mean`` (in,)."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not layer.training:
            return
        features = inputs[0].detach().float()
        axis = -1 if isinstance(layer, nn.Linear) else 1
        power = features.square().movedim(axis, 0).flatten(1).mean(dim=1)
        mean.mul_(MOMENTUM).add_(torch.nan_to_num(power, nan=0.0, posinf=0.0), alpha=1 - MOMENTUM)

    return hook
