"""How the masks of each path are found while the network trains.

``gradual`` starts dense and closes masks on a cubic schedule (Zhu and Gupta 2017, arXiv 1710.01878, equation 1);
``regrow`` starts random and each epoch removes the weakest channels and grows the most wanted ones (DNR, Kundu et al.
2021, arXiv 2011.03083, on channels of fixed count a group); ``static`` keeps its random start. In every mode each group
keeps exactly ``Structure.kept(size)`` channels at the end, never none, and each layer whose single weights are masked
exactly ``Structure.kept_weights(count)`` of them (see ``weight_learner.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.masking.accounting import zero_unused_
from smart_train.masking.layers import Expert, expert_at, weight_at
from smart_train.masking.network import SmartNetwork
from smart_train.masking.plan import (
    GRADUAL_BEGIN,
    GRADUAL_END,
    MOMENTUM,
    REGROW_END,
    REGROW_RATE,
    MaskPlan,
    gradual_count,
    strongest,
)
from smart_train.masking.weight_learner import WeightMaskLearner

GATE_FLOOR = 1e-6  # of the gates in ``regrow``: lost in the rounding of any sum, yet above zero in float16 too
WEIGHT_UPDATES = 100  # of ``gradual``, for single weights: choosing among millions takes as long as a training step


class MaskLearner:
    """Moves the masks of every path of ``net`` while it trains.

    Call :meth:`after_backward` between the backward pass and the optimiser step, :meth:`after_step` after the step.

    Args:
        net: its structure says how many channels are kept.
        plan: the mode and the score.
        total_steps: optimiser steps of the whole training.
        steps_per_epoch: ``regrow`` updates at the end of each epoch.
        generator: of random starts, on the CPU.
        from_weights: start ``regrow`` and ``static`` from the magnitudes of weights that were trained before, and not
            at random: the paths then start with the same masks.

    Attributes:
        frozen_from: the optimiser step after which the masks are at their target and never move again.
    """

    def __init__(
        self,
        net: SmartNetwork,
        *,
        plan: MaskPlan,
        total_steps: int,
        steps_per_epoch: int,
        generator: torch.Generator,
        from_weights: bool = False,
    ) -> None:
        if net.structure.removes_nothing:  # the masks are at their target from the first step
            plan = MaskPlan(mode="static")
        self._net = net
        self._plan = plan
        self._total = total_steps
        self._epoch = steps_per_epoch
        end = {"gradual": GRADUAL_END, "regrow": REGROW_END, "static": 0.0}[plan.mode]
        self.frozen_from = round(end * total_steps)
        self._targets = [net.structure.kept(group.size, bundle=group.bundle) for group in net.groups]
        device = next(net.parameters()).device
        # Running means of the gate gradient, per path and group: of its absolute value, and with its sign.
        self._absolute = {p: [torch.zeros(g.size, device=device) for g in net.groups] for p in net.path_names}
        self._signed = {p: [torch.zeros(g.size, device=device) for g in net.groups] for p in net.path_names}
        if plan.mode != "gradual":
            for path, i in self._each:
                order = torch.randperm(net.groups[i].size, generator=generator)
                if from_weights:
                    order = magnitude(net, path, i).argsort(descending=True, stable=True).cpu()
                keep = torch.zeros(len(order), dtype=torch.bool)
                keep[order[: self._targets[i]]] = True
                net.set_mask(path, i, keep)
        self._weights = WeightMaskLearner(net, plan=plan, generator=generator, from_weights=from_weights)
        self._watch(step=0)

    @property
    def _each(self) -> Iterator[tuple[str, int]]:
        """Every path with the number of every group."""
        return product(self._net.path_names, range(len(self._net.groups)))

    def _watch(self, *, step: int) -> None:
        """Put fresh gates on every masked layer after ``step``, or take them off where no score needs them any more.

        A gate copies its mask when it is made, so this follows every move of the masks.
        """
        moving = step < self.frozen_from
        floor = GATE_FLOOR if self._plan.mode == "regrow" else 0.0  # in the other modes no channel comes back
        self._watching = moving and (self._plan.mode == "regrow" or self._plan.score == "gradient")
        for path in self._net.path_names:
            for layer in _masked_layers(self._net, path):
                layer.watch_gate(self._watching, floor=floor)
        self._weights.watch(moving)

    def after_backward(self) -> None:
        """Take in the gate gradients of this step."""
        if not self._watching:
            return
        for path in self._net.path_names:
            network = self._net.path(path).network
            for i, group in enumerate(self._net.groups):
                gradient = torch.zeros_like(self._signed[path][i])
                for point in group.points:
                    layer = expert_at(network, point.layer)
                    if layer.gate is None or layer.gate.grad is None:
                        continue
                    for member in group.members_at(point.layer):
                        gradient += layer.gate.grad[member.indices.to(gradient.device)].sum(dim=1)
                # With 16-mixed a step whose scaled loss overflows is skipped: its infinities must not stay here.
                gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
                self._absolute[path][i].mul_(MOMENTUM).add_(gradient.abs(), alpha=1 - MOMENTUM)
                self._signed[path][i].mul_(MOMENTUM).add_(gradient)
            for layer in _masked_layers(self._net, path):
                if layer.gate is not None:
                    layer.gate.grad = None
        self._weights.after_backward()

    def after_step(self, step: int, *, optimizer: torch.optim.Optimizer) -> None:
        """Move the masks after optimiser step number ``step`` (1 for the first); freeze them at their target."""
        last = max(self.frozen_from, 1)
        if step > last:
            return
        if self._plan.mode == "gradual":
            begin = GRADUAL_BEGIN * self._total
            progress = 1.0 if step == last else (step - begin) / (last - begin)
            self._shrink(progress)
            if progress > 0 and (last - step) % math.ceil((last - begin) / WEIGHT_UPDATES) == 0:
                self._weights.shrink(progress)
        elif self._plan.mode == "regrow" and step % self._epoch == 0 and step < last:
            rate = REGROW_RATE * (1 - step / last)
            self._replace(rate)
            self._weights.replace(rate)
        self._watch(step=step)
        if step == last:
            zero_unused_(self._net, optimizer)

    def _shrink(self, progress: float) -> None:
        for path, i in self._each:
            count = gradual_count(self._net.groups[i].size, target=self._targets[i], progress=progress)
            mask = self._net.mask(path, i)
            if count < int(mask.sum()):
                self._net.set_mask(path, i, strongest(self._scores(path, i), among=mask, count=count))

    def _replace(self, rate: float) -> None:
        for path, i in self._each:
            mask = self._net.mask(path, i)
            kept = int(mask.sum())
            moved = min(int(rate * kept), mask.numel() - kept)
            survivors = strongest(self._scores(path, i), among=mask, count=kept - moved)
            grown = strongest(self._signed[path][i].abs(), among=~survivors, count=moved)
            self._net.set_mask(path, i, survivors | grown)

    def _scores(self, path: str, group: int) -> Tensor:
        return self._absolute[path][group] if self._plan.score == "gradient" else magnitude(self._net, path, group)

    def state(self) -> dict[str, Any]:
        """Return what resuming needs beside the masks themselves."""
        return {"absolute": self._absolute, "signed": self._signed, "weights": self._weights.state()}

    def load_state(self, state: dict[str, Any], *, step: int) -> None:
        """Continue after optimiser step ``step`` from what :meth:`state` returned; the masks are set already."""
        for path, i in self._each:
            self._absolute[path][i].copy_(state["absolute"][path][i])
            self._signed[path][i].copy_(state["signed"][path][i])
        self._weights.load_state(state["weights"])
        self._watch(step=step)


def _masked_layers(net: SmartNetwork, path: str) -> list[Expert]:
    return [m for m in net.path(path).modules() if isinstance(m, Expert) and m.mask is not None]


@torch.no_grad()
def magnitude(net: SmartNetwork, path: str, group: int) -> Tensor:
    """Return filter norm times the path's batch-norm scale for each channel of a group, summed over its points.

    The norm is over all input channels, those that the path itself has dropped included.
    """
    found = net.groups[group]
    network = net.path(path).network
    device = next(net.parameters()).device
    total = torch.zeros(found.size, device=device)
    for point in found.points:
        scale = weight_at(network, point.layer)
        strength = torch.ones(len(scale), device=device)
        if point.producer is not None:
            strength = weight_at(network, point.producer).flatten(1).float().norm(dim=1)
        if isinstance(network.get_submodule(point.layer), nn.BatchNorm2d):
            strength = strength * scale.abs()
        for member in found.members_at(point.layer):
            total += strength[member.indices.to(device)].sum(dim=1)
    return total
