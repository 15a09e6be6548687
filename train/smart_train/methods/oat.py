"""Once-for-all adversarial training (OAT, Wang et al. 2020, arXiv 2010.11828): one network for every weight lambda.

The loss of an image is (1 - lambda) CE(clean) + lambda CE(attacked), and FiLM (`film.py`) tells the network lambda.
Deployed are plain networks, one for each of three lambdas, with FiLM folded into their batch norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import nn

from smart_common.roles import Role
from smart_train.attacks import Attack, attack_kind
from smart_train.masking.deriving import derived
from smart_train.masking.network import SmartNetwork
from smart_train.masking.passes import Out, Pass
from smart_train.methods.film import ConditionalNetwork, Conditions
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
LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
"""What is trained for; of the authors' released code."""

_DEPLOYED = {"clean": (CLEAN, 0.0), "lambda-02": (ROBUST, 0.2), "robust": (ROBUST, 1.0)}
_LEAST = 2  # images a batch norm needs to have statistics of


class Oat(Training):
    """The mean of (1 - lambda) CE(z) + lambda CE(z') over the batch, a lambda drawn for each image.

    The first sixth of a batch has lambda 0 and goes through path ``clean``; it is not attacked. The others go through
    path ``robust`` twice, as they are and attacked, so its batch norms see both. FiLM is the same for both paths.
    """

    def __init__(self, net: SmartNetwork, setup: Setup) -> None:
        self._conditions = Conditions(net.path(CLEAN), setup.example, count=len(LAMBDAS), seed=setup.seed)
        self._modules = ConditionalNetwork(net, self._conditions)
        super().__init__(net, setup, extra=self._conditions)

    @classmethod
    def build(cls, plain: nn.Module, setup: Setup) -> Training:
        """See :meth:`Training.build`; what learns has two paths, whatever is deployed."""
        return cls(masked(plain, setup, paths=(CLEAN, ROBUST)), setup)

    @property
    def modules(self) -> nn.Module:
        """The network with what conditions it."""
        return self._modules

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class."""
        count = len(batch.images)
        first = max(_LEAST, -(-count // len(LAMBDAS)))  # that many have lambda 0
        device = batch.images.device
        rows = torch.randint(1, len(LAMBDAS), (count - first,), generator=batch.generator, device=device)
        zero = torch.zeros(first, dtype=torch.int64, device=device)
        path = self.net.path(ROBUST)
        with torch.no_grad(), self._conditions.applied(path, rows):
            # One start: a later one would attack fewer images than there are conditions.
            adversarial = attacked(path, batch, replace(short_steps(attack), restarts=1), part=slice(first, None))
        weights = torch.tensor(LAMBDAS, device=device)[rows]

        def loss(outs: Sequence[Out]) -> StepLoss:
            easy, clean, robust = (out.scores.float() for out in outs)
            zeros = F.cross_entropy(easy, batch.targets[:first], reduction="none")
            before = F.cross_entropy(clean, batch.targets[first:], reduction="none")
            after = F.cross_entropy(robust, batch.targets[first:], reduction="none")
            total = (zeros.sum() + ((1 - weights) * before + weights * after).sum()) / count
            return StepLoss(total, {CLEAN: zeros.mean().detach(), ROBUST: after.mean().detach()})

        passes = [
            Pass(CLEAN, batch.images[:first], condition=zero),
            Pass(ROBUST, batch.images[first:], condition=rows),
            Pass(ROBUST, adversarial, condition=rows),
        ]
        return Step(passes, loss)

    def deployable(self, sample: Sampler) -> SmartNetwork:
        """Return a plain network for each deployed lambda: the same weights, with FiLM in the batch norms."""
        del sample
        net = derived(self.net, {name: path for name, (path, _) in _DEPLOYED.items()}, shares="weights")
        for name, (_, weight) in _DEPLOYED.items():
            self._conditions.fold_(net.path(name), LAMBDAS.index(weight))
        return net


def short_steps(attack: Attack) -> Attack:
    """Return ``attack`` with steps as in the code of OAT, which reach little beyond eps, unless the user chose others.

    They are min(1.25 eps, eps + 4/255) / steps: 1.43/255 for 7 steps at 8/255.
    """
    if attack.step_size is not None or attack_kind(attack.name).one_step:
        return attack
    return replace(attack, step_size=min(1.25 * attack.eps, attack.eps + 4 / 255) / attack.steps or None)


OAT = Method(
    name="oat",
    summary="one network that is told how much robustness counts; deployed for three such weights, lambda",
    reference="Wang et al. 2020, arXiv 2010.11828",
    paths=(PathSpec("clean", Role.CLEAN), PathSpec("lambda-02", Role.BOTH), PathSpec("robust", Role.ATTACKED)),
    build=Oat.build,
    forwards=lambda steps: 3 + 5 / 6 * (2 * steps + 3),
    default_density=1.0,
)
