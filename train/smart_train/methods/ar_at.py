"""AR-AT (asymmetrically representation-regularised adversarial training, Waseda et al. 2024, arXiv 2402.14648).

Two paths over one set of weights, with batch norms of their own. The features of the robust path are drawn to those of
the clean one, through a predictor that only training has, and the clean ones are not drawn to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork
from smart_train.masking.passes import Out, Pass
from smart_train.methods.feature_layers import last_stage
from smart_train.methods.interface import (
    Batch,
    Method,
    PathSpec,
    Sampler,
    Setup,
    Step,
    StepLoss,
    Training,
    attacked,
    masked,
)

CLEAN, ROBUST = "clean", "robust"
SAMPLE = 1000
"""Training images on which the clean path's accuracy is measured before an epoch, as in the authors' code."""
_NARROWER = 4  # a predictor's hidden layer than its features, as in the authors' code


@dataclass(frozen=True)
class ArAtOptions:
    """Options of AR-AT; raises ConfigError if one is out of range."""

    weight: float = field(default=30.0, metadata={"help": "how much the distance of the features counts, 0 or more"})
    clean_noise: float = field(
        default=0.0,
        metadata={"help": "uniform noise on the clean batch up to this, in pixel units; the authors' code has eps"},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1e6:
            raise ConfigError(f"expected a weight from 0 to 1e6, got {self.weight}; 30 is the authors' for ResNet-18")
        if not 0 <= self.clean_noise <= 1:
            raise ConfigError(f"expected a clean_noise in [0, 1] (pixel units), got {self.clean_noise}; 0 is none")


class Predictor(nn.Module):
    """Linear - batch norm - ReLU - linear, from features (N, channels) to as many."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _NARROWER)
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, channels) to (N, channels)."""
        result: Tensor = self.layers(features)
        return result


class Predicting(nn.Module):
    """A network and its predictors: pools the tapped batch norms, and predicts from those of the robust path.

    One module does both, since what wraps it to train on several devices has to see every parameter in one call.
    """

    def __init__(self, net: SmartNetwork, predictors: nn.ModuleList) -> None:
        super().__init__()
        self.net = net
        self.predictors = predictors

    def forward(self, passes: Sequence[Pass]) -> list[Out]:
        """Do the passes; each tapped layer gives (N, channels): pooled after a ReLU, on the robust path predicted."""
        return [self._out(one.path, out) for one, out in zip(passes, self.net(passes), strict=True)]

    def _out(self, path: str, out: Out) -> Out:
        pooled = {name: torch.relu(features).mean(dim=(2, 3)) for name, features in out.features.items()}
        if path == ROBUST:
            pairs = zip(pooled.items(), self.predictors, strict=True)
            pooled = {name: predictor(features) for (name, features), predictor in pairs}
        return Out(out.scores, pooled)


class ArAt(Training):
    """p CE(z', y) + (1 - p) CE(z, y) + weight * mean over layers and images of 1 - cos(h(v'), v), v without gradient.

    z and v are the clean path's scores and features of the clean batch, z' and v' the robust path's of the batch under
    attack, and p is the clean path's accuracy at the start of the epoch.
    """

    def __init__(self, net: SmartNetwork, setup: Setup) -> None:
        layers = last_stage(net.path(ROBUST).network, setup.example)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            predictors = nn.ModuleList(Predictor(channels) for channels in layers.values())
        super().__init__(net, setup, extra=predictors)
        self.layers = tuple(layers)
        self.clean_accuracy = 1 / setup.num_classes  # by chance, until an epoch begins
        self._modules = Predicting(net, predictors)

    @classmethod
    def build(cls, plain: nn.Module, setup: Setup) -> ArAt:
        """See `Training.build`."""
        return cls(masked(plain, setup, paths=[path.name for path in setup.paths]), setup)

    @property
    def modules(self) -> nn.Module:
        """The network with its predictors."""
        return self._modules

    def epoch_start(self, epoch: int, sample: Sampler) -> None:
        """Measure the clean path on about `SAMPLE` training images, in eval mode."""
        del epoch
        path, right, seen = self.net.path(CLEAN), 0, 0
        with attack_mode(path), torch.no_grad():
            for batch in sample(SAMPLE):
                right += int((path(batch.images).argmax(dim=1) == batch.labels).sum())
                seen += len(batch.labels)
        self.clean_accuracy = right / seen

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        adversarial = attacked(self.net.path(ROBUST), batch, attack)
        clean = batch.images
        if noise := self.options.clean_noise:  # not clamped, as in the authors' code
            clean = clean + torch.empty_like(clean).uniform_(-noise, noise, generator=batch.generator)

        def loss(outs: Sequence[Out]) -> StepLoss:
            of_clean, of_robust = outs
            clean_loss = F.cross_entropy(of_clean.scores.float(), batch.targets)
            robust_loss = F.cross_entropy(of_robust.scores.float(), batch.targets)
            apart = torch.stack(
                [
                    1 - F.cosine_similarity(of_robust.features[name].float(), of_clean.features[name].detach().float())
                    for name in self.layers
                ]
            ).mean()
            p = self.clean_accuracy
            return StepLoss(
                p * robust_loss + (1 - p) * clean_loss + self.options.weight * apart,
                {CLEAN: clean_loss.detach(), ROBUST: robust_loss.detach(), "distance": apart.detach()},
            )

        return Step([Pass(CLEAN, clean, self.layers), Pass(ROBUST, adversarial, self.layers)], loss)


AR_AT = Method(
    name="ar-at",
    summary="a robust path whose features are drawn to those of a clean one; the clean path is a second one to deploy",
    reference="Waseda et al. 2024, arXiv 2402.14648",
    paths=(PathSpec(ROBUST, Role.BOTH), PathSpec(CLEAN, Role.CLEAN)),
    build=ArAt.build,
    forwards=lambda steps: 2 * steps + 6,
    options=ArAtOptions,
    default_density=1.0,
    defaults={"steps": 10},
)
