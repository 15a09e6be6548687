"""VFD (vanilla feature distillation, Cao et al. 2022, arXiv 2206.02158): a reconstruction, since there is no code.

From the abstract: the features of clean and of attacked images are drawn to those that a normally trained network has
of the clean ones. The distance, the layer and the weights are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_common.errors import alternatives
from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.errors import ConfigError
from smart_train.masking.passes import INPUT, Out, Pass
from smart_train.methods.base_method import base_training, check_beta
from smart_train.methods.feature_layers import classifier
from smart_train.methods.interface import Batch, Method, PathSpec, Setup, Step, StepLoss, Training

ROBUST = "robust"
BASES = ("pgd-at", "trades")


@dataclass(frozen=True)
class VfdOptions:
    """Options of VFD; raises ConfigError if one is out of range."""

    base: str = field(default="pgd-at", metadata={"help": f"the method that it adds to: {', '.join(BASES)}"})
    beta: float = field(default=6.0, metadata={"help": "of trades"})
    a: float = field(default=1.0, metadata={"help": "how much the distance of attacked features counts, 0 or more"})
    b: float = field(default=1.0, metadata={"help": "how much the distance of clean features counts, 0 or more"})

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise ConfigError(f"unknown base of vfd {alternatives(self.base, BASES)}")
        check_beta(self)
        if not 0 <= self.a <= 1e6 or not 0 <= self.b <= 1e6:
            raise ConfigError(f"expected a and b from 0 to 1e6, got {self.a} and {self.b}; 1 and 1 are usual")


class Adapting(nn.Module):
    """A network whose tapped features go through an adapter to the teacher's width."""

    def __init__(self, net: nn.Module, adapter: nn.Linear) -> None:
        super().__init__()
        self.net = net
        self.adapter = adapter

    def forward(self, passes: Sequence[Pass]) -> list[Out]:
        """Do the passes; features (N, width) become (N, the teacher's width)."""
        return [
            Out(out.scores, {name: self.adapter(found) for name, found in out.features.items()})
            for out in self.net(passes)
        ]


class Vfd(Training):
    """The base's loss + a D(s(x'), t(x)) + b D(s(x), t(x)), where D(u, v) = 1 - cos(u, v), mean over the images.

    s and t are what the classifiers of the network and of the teacher are given, x' is the base's attacked batch. Where
    their widths differ, s goes through a linear adapter, which only training has.
    """

    def __init__(self, base: Training, setup: Setup) -> None:
        assert setup.teacher is not None
        self.base, self.teacher = base, setup.teacher
        layer, width = classifier(base.net.path(ROBUST).network, setup.example)
        self.layer = layer + INPUT
        self._teachers_layer, teachers_width = classifier(self.teacher, setup.example)
        adapter = None
        if width != teachers_width:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(setup.seed)
                adapter = nn.Linear(width, teachers_width)
        super().__init__(base.net, setup, extra=adapter)
        self._modules = base.net if adapter is None else Adapting(base.net, adapter)

    @classmethod
    def build(cls, plain: nn.Module, setup: Setup) -> Vfd:
        """See `Training.build`."""
        return cls(base_training(plain, setup), setup)

    @property
    def modules(self) -> nn.Module:
        """The network, with its adapter if there is one."""
        return self._modules

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor:
        """Return what the teacher's classifier is given: (N, the teacher's width), without gradient."""
        seen: list[Tensor] = []
        module = self.teacher.get_submodule(self._teachers_layer)
        handle = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            self.teacher(images)
        finally:
            handle.remove()
        return seen[-1].float()

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        step, options = self.base.step(batch, attack), self.options
        taught = self._taught(batch.images)
        passes = list(step.passes)  # the last is of the attacked batch, in both bases
        attacked_at = len(passes) - 1
        if all(one.images is not batch.images for one in passes):
            passes.append(Pass(ROBUST, batch.images))
        clean_at = next(i for i, one in enumerate(passes) if one.images is batch.images)

        def distance(out: Out) -> Tensor:
            return (1 - F.cosine_similarity(out.features[self.layer].float(), taught)).mean()

        def loss(outs: Sequence[Out]) -> StepLoss:
            found = step.loss(outs[: len(step.passes)])
            apart, clean_apart = distance(outs[attacked_at]), distance(outs[clean_at])
            return StepLoss(
                found.total + options.a * apart + options.b * clean_apart,
                {**found.parts, "distance": apart.detach(), "clean_distance": clean_apart.detach()},
            )

        return Step([one._replace(tap=(self.layer,)) for one in passes], loss)


VFD = Method(
    name="vfd",
    summary="pgd-at or trades, with features drawn to those that a normally trained teacher has of the clean images",
    reference="Cao et al. 2022, arXiv 2206.02158 (its abstract)",
    paths=(PathSpec(ROBUST, Role.BOTH),),
    build=Vfd.build,
    forwards=lambda steps: 2 * steps + 7,
    options=VfdOptions,
    default_density=1.0,
    defaults={"steps": 10},
    needs_teacher=True,
    caveat="reconstruction",
)
