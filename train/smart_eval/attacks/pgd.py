"""PGD as it measures: any iterate of any restart may break an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smart_eval.attacks.base import DRAWS, NamedAttack, Transferred
from smart_train.attacks import Attack, Model


@dataclass(frozen=True)
class Pgd(NamedAttack):
    """PGD with restarts (Madry et al. 2018, arXiv 1706.06083); any iterate may break an image.

    With several ``draws`` it climbs the mean loss of as many calls in each step, and the last iterate counts.
    """

    attack: Attack
    draws: int = 1

    @property
    def name(self) -> str:
        """Such as ``pgd50x5``."""
        return self.attack.label

    @property
    def eps(self) -> float:
        """The radius."""
        return self.attack.eps

    @property
    def description(self) -> str:
        """See `NamedAttack.description`."""
        attack = self.attack
        return (
            f"projected gradient descent, {attack.steps} steps of {attack.step:.4g} from each of {attack.restarts} "
            f"random start(s)" + (f", on the mean loss of {self.draws} calls" if self.draws > 1 else "")
        )

    def record(self) -> dict[str, Any]:
        """See `NamedAttack.record`."""
        attack = self.attack
        figures = {"steps": attack.steps, "restarts": attack.restarts, "step_size": attack.step}
        return {**super().record(), **figures, **({"draws": self.draws} if self.draws > 1 else {})}

    def for_randomised(self) -> Pgd:
        """See `NamedAttack.for_randomised`."""
        return replace(self, draws=DRAWS)

    def __call__(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """See `NamedAttack.__call__`."""
        if self.draws > 1:
            return self.for_transfer(model, images, labels, seed=seed)
        return self.attack.run(model, images, labels, generator=_generator(images, seed), early_stop=True)

    def for_transfer(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Run all steps, whatever ``model`` says on the way."""

        def drawn(images: Tensor) -> Tensor:
            return torch.stack([model(images) for _ in range(self.draws)], dim=2)

        victim = drawn if self.draws > 1 else model
        return self.attack.run(victim, images, labels, generator=_generator(images, seed))


def named_pgd(_: str, eps: float, *, steps: int, restarts: int, step_size: float | None) -> Pgd:
    """Return the PGD of a command line; raises ConfigError if a value is out of range."""
    return Pgd(Attack(eps=eps, steps=steps, restarts=restarts, step_size=step_size))


def as_pgd(attack: NamedAttack) -> Pgd | None:
    """Return ``attack`` if it is PGD, wherever it is made; else None."""
    made = attack.attack if isinstance(attack, Transferred) else attack
    return made if isinstance(made, Pgd) else None


def _generator(images: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(device=images.device).manual_seed(seed)
