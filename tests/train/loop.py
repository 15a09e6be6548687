"""Training without data, for tests of masks."""

from __future__ import annotations

import torch

from smart_train import Attack, SmartNetwork
from smart_train.masking.layers import Expert
from smart_train.masking.learner import MaskLearner
from smart_train.masking.plan import MaskPlan
from smart_train.masking.wanted import Wanted
from smart_train.methods.interface import Batch
from smart_train.methods.smart import Smart
from train.networks import setup

IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


class Loop:
    """The training loop without data: one batch over and over."""

    def __init__(self, net: SmartNetwork, plan: MaskPlan, *, epochs: int, per_epoch: int, seed: int = 0) -> None:
        self.net = net.train()
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.learner = MaskLearner(
            net,
            plan=plan,
            total_steps=epochs * per_epoch,
            steps_per_epoch=per_epoch,
            generator=torch.Generator().manual_seed(seed),
        )
        self.smart = Smart(self.net, setup("smart"))
        self.total = epochs * per_epoch
        self.attack = torch.Generator().manual_seed(1)

    def step(self, number: int) -> None:
        batch = Batch(IMAGES, LABELS, LABELS, generator=self.attack, number=number, total=self.total)
        step = self.smart.step(batch, Attack(eps=0.1, steps=1))
        loss = step.loss(self.net(step.passes))
        self.optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        self.learner.after_backward()
        self.optimizer.step()
        self.learner.after_step(number, optimizer=self.optimizer)

    @property
    def wanted(self) -> Wanted:
        assert self.learner._wanted is not None
        return self.learner._wanted

    def counts(self) -> dict[str, list[int]]:
        return {path: [int(m.sum()) for m in self.net.masks(path)] for path in self.net.path_names}

    def gates(self) -> int:
        experts = [m for m in self.net.modules() if isinstance(m, Expert)]
        return sum(m.gate is not None or m.weight_gate is not None for m in experts)
