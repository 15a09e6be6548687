"""How the masks of each path are found while the network trains: a `MaskMode` says where they start and how they move.

In every mode each group keeps exactly ``SmartNetwork.kept`` channels at the end, never none, and each layer whose
single weights are masked exactly ``SmartNetwork.kept_weights`` of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from smart_train.masking.accounting import zero_unused_
from smart_train.masking.mode import Moment, load_mode
from smart_train.masking.moving_channels import ChannelMasks
from smart_train.masking.moving_weights import WeightMasks
from smart_train.masking.network import SmartNetwork
from smart_train.masking.plan import MaskPlan
from smart_train.masking.wanted import Wanted


class MaskLearner:
    """Moves the masks of every path of ``net`` while it trains.

    Call :meth:`after_backward` between the backward pass and the optimiser step, :meth:`after_step` after the step.

    Args:
        net: says how many channels and weights are kept.
        plan: the mode and the score.
        total_steps: optimiser steps of the whole training.
        steps_per_epoch: some modes move masks at the end of each epoch.
        generator: of random starts, on the CPU.
        from_weights: start masks that are sparse from the first step from the magnitudes of weights that were trained
            before, and not at random: with ``static`` and ``regrow`` the paths then start with the same masks.

    Attributes:
        frozen_from: the optimiser step after which the masks never move again.
        closed_from: the one from which each mask keeps as much as the structure says.

    Raises:
        ConfigError: if the mode needs more paths than ``net`` has.
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
        load_mode(plan.mode).check(net.path_names)
        if net.structure.removes_nothing:  # the masks are at their target from the first step
            plan = replace(plan, mode="static")
        self._net, self._total, self._epoch = net, total_steps, steps_per_epoch
        self._mode = mode = load_mode(plan.mode)
        self.frozen_from = round(mode.frozen * total_steps)
        self.closed_from = round(mode.closed * total_steps)
        self._wanted = Wanted(net, leak=mode.leak) if mode.leak else None
        parts: dict[str, Any] = {
            "plan": plan, "mode": mode, "wanted": self._wanted, "generator": generator, "from_weights": from_weights
        }  # fmt: skip
        self._channels = ChannelMasks(net, **parts)
        mode.start(self._channels)
        self._weights = WeightMasks(net, **parts)
        mode.start(self._weights)
        self._watch(step=0)

    def _watch(self, *, step: int) -> None:
        """Collect what scores need after ``step``, or nothing more; this follows every move of the masks."""
        self._moving = step < self.frozen_from
        for part in (self._channels, self._weights, self._wanted):
            if part is not None:
                part.watch(self._moving)

    def after_backward(self) -> None:
        """Take in the gradients of this step."""
        if not self._moving:
            return
        for part in (self._channels, self._weights, self._wanted):
            if part is not None:
                part.after_backward()

    def after_step(self, step: int, *, optimizer: torch.optim.Optimizer) -> None:
        """Move the masks after optimiser step number ``step`` (1 for the first); freeze them at their target."""
        last = max(self.frozen_from, 1)
        if step > last:
            return
        now = Moment(step=step, last=last, total=self._total, per_epoch=self._epoch)
        moved = [self._mode.move(masks, now, optimizer=optimizer) for masks in (self._channels, self._weights)]
        if any(moved) or step == last:
            self._watch(step=step)
        if step == last:
            zero_unused_(self._net, optimizer)

    def state(self) -> dict[str, Any]:
        """Return what resuming needs beside the masks themselves."""
        wanted = {} if self._wanted is None else {"wanted": self._wanted.state()}
        return {"channels": self._channels.state(), "weights": self._weights.state(), **wanted}

    def load_state(self, state: dict[str, Any], *, step: int) -> None:
        """Continue after optimiser step ``step`` from what :meth:`state` returned; the masks are set already."""
        self._channels.load_state(state["channels"])
        self._weights.load_state(state["weights"])
        if self._wanted is not None:
            self._wanted.load_state(state["wanted"])
        self._watch(step=step)
