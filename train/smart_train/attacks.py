"""L-infinity attacks in pixel units: images in [0, 1], eps such as 8/255; normalisation is inside the network.

The model is used as it is: put it in eval mode first, or its batch statistics leak into the attack (and move).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor

from smart_common.errors import alternatives
from smart_common.lazy import load
from smart_train.choices import ATTACKS, MAX_INTEGER
from smart_train.errors import ConfigError

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""Of scores (N, classes) and labels (N,): what an attack increases, the sum over the images."""


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, a scalar; its gradient vanishes where scores lie far apart."""
    return F.cross_entropy(scores, labels, reduction="sum")


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how far the best other class lies above the labels', a scalar, whatever the scale of the scores.

    Carlini and Wagner (2017, arXiv 1608.04644, section V-A, f6 without its floor).
    """
    own = scores.gather(1, labels.unsqueeze(1))
    others = scores.scatter(1, labels.unsqueeze(1), -torch.inf)
    return (others.amax(dim=1) - own.squeeze(1)).sum()


class Start(Protocol):
    """Where an attack begins."""

    def __call__(self, images: Tensor, radius: float | Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the images to begin with: new memory, the shape of ``images``."""


def uniform_start(images: Tensor, radius: float | Tensor, *, generator: torch.Generator) -> Tensor:
    """Return images drawn evenly from those in [0, 1] and within ``radius``."""
    noise = torch.empty_like(images)
    if isinstance(radius, Tensor):
        noise.uniform_(-1, 1, generator=generator).mul_(radius)
    else:
        noise.uniform_(-radius, radius, generator=generator)
    return noise.add_(images).clamp_(0, 1)


def gaussian_start(images: Tensor, radius: float | Tensor, *, generator: torch.Generator) -> Tensor:
    """Return the images with noise of standard deviation 0.001, which the first step projects (TRADES)."""
    del radius  # as every start
    return images + 0.001 * torch.empty_like(images).normal_(generator=generator)


def wide_start(images: Tensor, radius: float | Tensor, *, generator: torch.Generator) -> Tensor:
    """Return the images with noise drawn evenly from twice the ``radius`` either way, beyond [0, 1] too (N-FGSM)."""
    return images + 2 * radius * torch.empty_like(images).uniform_(-1, 1, generator=generator)


@dataclass(frozen=True)
class AttackKind:
    """What the attacks of one name have in common.

    Attributes:
        usual_step: the length of a step unless told otherwise, in pixel units, of eps and the number of steps.
        one_step: whether it has one step, and no other number makes sense.
        loss: what is increased, and ``start`` where each restart begins, unless a method says otherwise.
        projects: whether each step ends within the radius; else within [0, 1] alone.
    """

    usual_step: Callable[[float, int], float]
    one_step: bool = False
    loss: Loss = cross_entropy
    start: Start = uniform_start
    projects: bool = True


PGD = AttackKind(usual_step=lambda eps, steps: 2.5 * eps / steps)
"""Madry et al. 2018, arXiv 1706.06083; the step is that of their appendix."""

FGSM_RS = AttackKind(usual_step=lambda eps, _: 1.25 * eps, one_step=True)
"""One step from a random start (Wong et al. 2020, arXiv 2001.03994; the step is that of section 4)."""

N_FGSM = AttackKind(usual_step=lambda eps, _: eps, one_step=True, start=wide_start, projects=False)
"""One step from noise that is not taken back (de Jorge et al. 2022, arXiv 2202.01181): up to 3 eps from the image."""


def attack_kind(name: str) -> AttackKind:
    """Return what ``ATTACKS`` has under ``name``.

    Raises:
        ConfigError: if there is no such attack.
    """
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {alternatives(str(name), ATTACKS)}")
    kind: AttackKind = load(ATTACKS[name])
    return kind


@dataclass(frozen=True)
class Attack:
    """An L-infinity attack of one kind and strength.

    Attributes:
        name: a row of ``ATTACKS``: ``pgd``, or ``fgsm-rs`` and ``n-fgsm``, one step from a random start.
        eps: radius in pixel units, in [0, 1].
        steps: gradient steps; 1 for ``fgsm-rs`` and ``n-fgsm``.
        restarts: random starts; for each image the first that fools the model counts, else the one of highest loss.
        step_size: in pixel units; by default what is usual for this kind, 2.5 * eps / steps for PGD.

    Raises:
        ConfigError: if the attack is unknown, or a value is out of range.
    """

    name: str = "pgd"
    eps: float = 8 / 255
    steps: int = 7
    restarts: int = 1
    step_size: float | None = None

    def __post_init__(self) -> None:
        one_step = attack_kind(self.name).one_step
        if not 0 <= self.eps <= 1:
            raise ConfigError(
                f"expected eps in [0, 1] (pixel units), got {self.eps}; 8/255 = 0.0314 is usual for photographs"
            )
        if not 1 <= self.steps <= MAX_INTEGER or not 1 <= self.restarts <= MAX_INTEGER:
            raise ConfigError(
                f"expected 1 or more steps and restarts, each at most {MAX_INTEGER}, got {self.steps} and "
                f"{self.restarts}"
            )
        if one_step and self.steps != 1:
            raise ConfigError(f"{self.name} has 1 step, {self.steps} were asked for; use --attack pgd for more")
        if self.step_size is not None and not 0 < self.step_size <= 1:
            raise ConfigError(f"expected a step size in (0, 1], got {self.step_size}; leave it out for the usual one")

    @property
    def label(self) -> str:
        """The attack in the field's short form, ``pgd20x1`` for 20 steps and one restart."""
        return self.name if attack_kind(self.name).one_step else f"{self.name}{self.steps}x{self.restarts}"

    @property
    def step(self) -> float:
        """The length of a step in pixel units."""
        return self.step_size or attack_kind(self.name).usual_step(self.eps, self.steps)

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
        """Return adversarial images: the shape of ``images``, in [0, 1], within the radius of them.

        ``n-fgsm`` alone, which only trains, leaves the radius.

        Args:
            model: images (N, C, H, W) to scores (N, classes), in eval mode; or of several networks to scores
                (N, classes, networks): then the mean of their losses is attacked, and the start that fools most counts.
            images: float (N, C, H, W) in [0, 1].
            labels: int64 (N,).
            generator: random starts come from it; on the device of ``images``.
            loss: what is increased; that of the attack's kind by default.
            start: where each restart begins; likewise.
            radius: in pixel units, of each image, (N, 1, 1, 1), or of each pixel, (N, 1, H, W) or (N, C, H, W); eps for
                all by default.
            early_stop: leave each image alone as soon as the model errs on it. This is the attack that measures: any
                iterate of any restart may break an image, as in AutoAttack, and what is broken costs nothing more. An
                image that withstands is returned as the last restart left it.
        """
        kind = attack_kind(self.name)
        found = images.clone()
        most_fooled = torch.full(labels.shape, -1, device=labels.device)
        greatest_loss = torch.zeros(labels.shape, device=labels.device)
        left = torch.arange(len(labels), device=labels.device)  # what has not fooled every network yet
        for _ in range(self.restarts):
            if len(left) == 0:
                break
            adversarial, right = self._one_start(
                model,
                images[left],
                labels[left],
                begin=partial(start or kind.start, generator=generator),
                loss=loss or kind.loss,
                radius=self.eps if radius is None else radius[left],
                projects=kind.projects,
                early_stop=early_stop,
            )
            if early_stop:
                found[left] = adversarial
                left = left[right]
                continue
            if self.restarts == 1:
                return adversarial
            with torch.no_grad():
                scores = model(adversarial).float()
            targets = _targets(labels[left], scores)
            wrong = (scores.argmax(dim=1) != targets).reshape(len(left), -1)  # by network
            fooled = wrong.sum(dim=1)
            height = F.cross_entropy(scores, targets, reduction="none").reshape(len(left), -1).mean(dim=1)
            # A wrong answer may have a lower loss than a right one of low confidence: the loss alone is no order.
            equal = (fooled == most_fooled[left]) & (height > greatest_loss[left])
            better = (fooled > most_fooled[left]) | equal
            at = left[better]
            found[at], most_fooled[at], greatest_loss[at] = adversarial[better], fooled[better], height[better]
            left = left[~wrong.all(dim=1)]
        return found

    def _one_start(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        *,
        begin: Callable[[Tensor, float | Tensor], Tensor],
        loss: Loss,
        radius: float | Tensor,
        projects: bool,
        early_stop: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the images of one restart, and which (N,) the model still gets right; all without ``early_stop``."""
        adversarial = begin(images, radius)
        reach = radius if projects else 1.0
        low, high = (images - reach).clamp_(0, 1), (images + reach).clamp_(0, 1)
        found, withstands = adversarial.clone(), torch.ones_like(labels, dtype=torch.bool)
        at = torch.arange(len(labels), device=labels.device)  # where in `found` those stand that are being attacked
        for _ in range(self.steps):
            adversarial.requires_grad_()
            with torch.enable_grad():
                scores = model(adversarial).float()
            right: Tensor | slice = slice(None)
            if early_stop:
                right = scores.detach().argmax(dim=1) == labels
                found[at], withstands[at] = adversarial.detach(), right
                if not right.any():
                    return found, withstands
                at, labels, low, high, scores = at[right], labels[right], low[right], high[right], scores[right]
            with torch.enable_grad():
                increased = loss(scores, _targets(labels, scores))
                (gradient,) = torch.autograd.grad(increased, adversarial)  # for the input only: no weight gradients
            adversarial = torch.clamp(adversarial.detach()[right] + self.step * gradient[right].sign(), low, high)
        if not early_stop:
            return adversarial, withstands
        found[at] = adversarial
        with torch.no_grad():
            withstands[at] = model(adversarial).float().argmax(dim=1) == labels
        return found, withstands


def _targets(labels: Tensor, scores: Tensor) -> Tensor:
    """Return ``labels`` (N,) for every network of ``scores``, (N, classes) or (N, classes, networks)."""
    return labels if scores.dim() == 2 else labels.unsqueeze(1).expand(-1, scores.shape[2])
