"""PART (Zhang et al. 2024, arXiv 2406.00685): pixels that matter to the prediction are attacked with the full radius.

The authors' code makes the maps in another pass over the shuffled training images and matches them by number, so that
a map is mostly another image's. Here it is made by the attack, of the very images that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_common.errors import alternatives
from smart_common.roles import Role
from smart_train.attacks import Attack, Loss, Model, Start
from smart_train.errors import ConfigError
from smart_train.masking.network import PathNetwork
from smart_train.methods.base_method import base_training, check_beta
from smart_train.methods.feature_layers import last_map
from smart_train.methods.interface import Batch, Method, PathSpec, Setup, Step, Training

ROBUST = "robust"
BASES = ("pgd-at", "trades", "mart")


@dataclass(frozen=True)
class PartOptions:
    """Options of PART; raises ConfigError if one is out of range."""

    base: str = field(default="pgd-at", metadata={"help": f"the method whose attack is changed: {', '.join(BASES)}"})
    beta: float = field(default=6.0, metadata={"help": "of trades and mart"})
    low: float = field(
        default=7 / 8, metadata={"help": "radius of unimportant pixels, as a fraction of eps: 7/255 of 8/255"}
    )
    share: float = field(default=0.25, metadata={"help": "of an image's pixels, which are important, in (0, 1]"})
    warm_up: float = field(default=0.25, metadata={"help": "of the training, by the base method alone, in [0, 1]"})

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise ConfigError(f"unknown base of part {alternatives(self.base, BASES)}")
        check_beta(self)
        if not 0 <= self.low <= 1 or not 0 < self.share <= 1 or not 0 <= self.warm_up <= 1:
            raise ConfigError(
                f"expected low and warm_up in [0, 1] and share in (0, 1], got {self.low}, {self.warm_up} and "
                f"{self.share}; 0.875, 0.25 and 0.25 are usual"
            )


def importance(path: PathNetwork, images: Tensor, *, layer: str) -> Tensor:
    """Return how much each pixel matters to the class that ``path`` predicts: GradCAM, bicubic to the images' size.

    Selvaraju et al. 2017 (arXiv 1610.02391, equations 1 and 2). The path is used as it is: in eval mode an image's map
    does not depend on the others.

    Args:
        path: in eval mode.
        images: float (N, C, H, W) in [0, 1].
        layer: the module of the path's network whose output (N, channels, h, w) is looked at.

    Returns:
        (N, 1, H, W), in the unit of scores; interpolation may leave values below 0.
    """
    seen: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())  # so that the gradient's way back ends here
        return seen[-1].clone()  # the next layer may work in place

    handle = path.network.get_submodule(layer).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            scores = path(images).float()
            (gradient,) = torch.autograd.grad(scores.amax(dim=1).sum(), seen[-1])
    finally:
        handle.remove()
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = torch.relu((weights * seen[-1].detach()).sum(dim=1, keepdim=True)).float()
    return F.interpolate(maps, size=images.shape[2:], mode="bicubic", align_corners=False)


def important(maps: Tensor, *, share: float) -> Tensor:
    """Return the ``share`` of each image's pixels that matter most, and of those the ones that do at all.

    Args:
        maps: (N, 1, H, W), as `importance` gives them. Scaled to [0, 1] or not, the same pixels matter most.
        share: in (0, 1].

    Returns:
        bool (N, 1, H, W).
    """
    flat = maps.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    least = flat.topk(count, dim=1).values[:, -1:]
    return ((flat >= least) & (flat > 0)).view_as(maps)


@dataclass(frozen=True)
class ReweightedAttack(Attack):
    """An attack whose radius is a fraction of eps at pixels that matter little to what the model predicts.

    Attributes:
        layer: as of `importance`.
        low: the fraction, in [0, 1].
        share: as of `important`.
    """

    layer: str = ""
    low: float = 1.0
    share: float = 1.0

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator,
        loss: Loss | None = None,
        start: Start | None = None,
        radius: Tensor | None = None,
        early_stop: bool = False,
    ) -> Tensor:
        """See `Attack.run`; ``model`` is a `PathNetwork`. A uniform start is drawn within the radius of each pixel."""
        assert isinstance(model, PathNetwork)
        assert radius is None
        keep = important(importance(model, images, layer=self.layer), share=self.share)
        return super().run(
            model,
            images,
            labels,
            generator=generator,
            loss=loss,
            start=start,
            radius=torch.where(keep, self.eps, self.low * self.eps).to(images.dtype),
            early_stop=early_stop,
        )


class Part(Training):
    """The base method against a `ReweightedAttack`, from the end of the warm-up on."""

    def __init__(self, base: Training, setup: Setup) -> None:
        super().__init__(base.net, setup)
        self.base = base
        self.layer = last_map(base.net.path(ROBUST).network, setup.example)

    @classmethod
    def build(cls, plain: nn.Module, setup: Setup) -> Part:
        """See `Training.build`."""
        return cls(base_training(plain, setup), setup)

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        options = self.options
        if batch.number > options.warm_up * batch.total:
            given = {one.name: getattr(attack, one.name) for one in fields(Attack)}
            attack = ReweightedAttack(**given, layer=self.layer, low=options.low, share=options.share)
        return self.base.step(batch, attack)


PART = Method(
    name="part",
    summary="pgd-at, trades or mart against an attack that is weaker at pixels that matter little",
    reference="Zhang et al. 2024, arXiv 2406.00685",
    paths=(PathSpec(ROBUST, Role.BOTH),),
    build=Part.build,
    forwards=lambda steps: 2 * steps + 4.1,
    options=PartOptions,
    default_density=1.0,
    defaults={"steps": 10},
)
