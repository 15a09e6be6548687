"""What every attack that smart-eval measures says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from smart_train.attacks import Model
from smart_train.errors import ConfigError

DRAWS = 20
"""How often a randomised network is run for each gradient (see `NamedAttack.for_randomised`), as in the version of
AutoAttack for such networks."""


class NamedAttack(ABC):
    """An L-infinity attack in pixel units, made on one path, on images that the path classifies rightly.

    A subclass has ``name``, by which results are kept, and ``eps``, the radius in [0, 1]; most are frozen dataclasses
    with both as fields.
    """

    if TYPE_CHECKING:  # a property here would be the default of a dataclass's field there

        @property
        def name(self) -> str:
            """By which results are kept."""

        @property
        def eps(self) -> float:
            """The radius in pixel units."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What it does and how long it tries, for people; without eps, which a report says beside it."""

    @property
    def needs_gradients(self) -> bool:
        """Whether it cannot do without the network's gradients, which the graph of a bundle does not have."""
        return True

    @property
    def uses_queries(self) -> bool:
        """Whether it also finds images without gradients, by the scores alone."""
        return not self.needs_gradients

    def record(self) -> dict[str, Any]:
        """Return what results depend on and a report holds, in values that JSON has; ``name`` and ``eps`` included."""
        return {"name": self.name, "eps": self.eps}

    def check_ready(self, *, classes: int) -> None:  # noqa: B027  # most attacks need nothing
        """Raise before anything is measured if it cannot attack a network of ``classes`` classes on this machine.

        Raises:
            ConfigError: the classes are too few.
            MissingExtraError: a library is not installed.
        """

    def for_randomised(self) -> NamedAttack:
        """Return what attacks a network that draws random numbers in each call.

        It follows the mean gradient over `DRAWS` calls: expectation over transformation, EOT (Athalye et al. 2018,
        arXiv 1707.07397). A single draw misleads an attack, which makes the network look more robust than it is.

        Raises:
            ConfigError: there is no such version.
        """
        raise ConfigError(
            f"{self.name} has no version for networks that draw random numbers; use --attack pgd, apgd-ce or autoattack"
        )

    @abstractmethod
    def __call__(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Return adversarial images, float (N, C, H, W) in [0, 1] within eps of ``images``, N at least 1.

        Args:
            model: images to scores (N, classes), in eval mode.
            images: float32 (N, C, H, W) in [0, 1].
            labels: int64 (N,), what the model says of ``images``.
            seed: of all that is random in it; global random states are left as they are.
        """

    def for_transfer(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Return adversarial images to be tried on another network; by default the same as for ``model`` itself.

        An attack that stops at the first error goes on here: what is only just wrong on one network is often right on
        another.
        """
        return self(model, images, labels, seed=seed)


class WithSource(nn.Module):
    """A network without gradients; ``source`` is the one that it was made from, where that is at hand."""

    source: nn.Module | None


@dataclass(frozen=True)
class Transferred(NamedAttack):
    """An attack made on the source of a network without gradients, to be tried on that network."""

    attack: NamedAttack

    @property
    def name(self) -> str:
        """That of the attack."""
        return self.attack.name

    @property
    def eps(self) -> float:
        """That of the attack."""
        return self.attack.eps

    @property
    def description(self) -> str:
        """See `NamedAttack.description`."""
        return f"{self.attack.description}, made on the checkpoint that the bundle was exported from"

    def record(self) -> dict[str, Any]:
        """See `NamedAttack.record`."""
        return {**self.attack.record(), "made_on": "source"}

    def __call__(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """See `NamedAttack.__call__`; ``model`` is a `WithSource` that has one."""
        assert isinstance(model, WithSource)
        assert model.source is not None
        return self.attack.for_transfer(model.source, images, labels, seed=seed)
