"""The attacks that smart-eval knows by name, each against one path, on images that the path classifies rightly."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from smart_common.errors import MissingExtraError
from smart_train.attacks import Attack, Model
from smart_train.errors import ConfigError

CLEAN = "clean"
"""Not an attack: the images as they are, measured with every attack."""

AUTOATTACK = "autoattack"
SQUARE = "square"
_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        AUTOATTACK: ("apgd-ce", "apgd-t", "fab-t", SQUARE),
        **{part: (part,) for part in ("apgd-ce", "apgd-t", "fab-t", SQUARE)},
    }
)
_TARGETS = 9  # classes that the targeted attacks try, or all others where there are fewer
FEWEST_CLASSES = 4  # that the loss of apgd-t is made for: it takes the difference of the first and third-best score
_PGD = re.compile(r"pgd([1-9][0-9]{0,4})x([1-9][0-9]{0,3})", re.ASCII)
_FORMS = f"{CLEAN}, pgd, pgd50x5 (50 steps, 5 restarts), {', '.join(_PARTS)}"


class NamedAttack(Protocol):
    """An attack of the L-infinity kind, in pixel units."""

    @property
    def name(self) -> str:
        """By which results are kept."""

    @property
    def record(self) -> dict[str, Any]:
        """What a report says of it, its name included."""

    def __call__(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Return adversarial images, float (N, C, H, W) in [0, 1] within eps of ``images``, N at least 1.

        Args:
            model: images to scores (N, classes), in eval mode.
            images: float32 (N, C, H, W) in [0, 1].
            labels: int64 (N,), what the model says of ``images``.
            seed: of all that is random in it; global random states are left as they are.
        """


@dataclass(frozen=True)
class Pgd:
    """PGD with restarts (Madry et al. 2018, arXiv 1706.06083); any iterate may break an image."""

    attack: Attack

    @property
    def name(self) -> str:
        """Such as ``pgd50x5``."""
        return self.attack.label

    @property
    def record(self) -> dict[str, Any]:
        """See `NamedAttack.record`."""
        attack = self.attack
        return {
            "name": self.name,
            "eps": attack.eps,
            "steps": attack.steps,
            "restarts": attack.restarts,
            "step_size": attack.step,
        }

    def __call__(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """See `NamedAttack.__call__`."""
        generator = torch.Generator(device=images.device).manual_seed(seed)
        return self.attack.run(model, images, labels, generator=generator, early_stop=True)


@dataclass(frozen=True)
class AutoAttackParts:
    """AutoAttack's standard version, or one of its four parts alone (Croce and Hein 2020, arXiv 2003.01690).

    pyautoattack, the authors' code, does it: APGD-CE with 100 steps, APGD-T and FAB-T against 9 targets, and Square
    with 5,000 queries, each on what the ones before left, as `AutoAttack._set_version` sets the standard version.
    ``queries`` are Square's.

    Raises:
        ConfigError: there is no such part, or eps is out of range.
    """

    name: str
    eps: float
    queries: int = 5000

    def __post_init__(self) -> None:
        if self.name not in _PARTS:
            raise ConfigError(f"expected one of {', '.join(_PARTS)}, got {self.name!a:.60}; use {AUTOATTACK}")
        Attack(eps=self.eps)  # checks the range

    @property
    def record(self) -> dict[str, Any]:
        """See `NamedAttack.record`."""
        parts = list(_PARTS[self.name])
        return {"name": self.name, "eps": self.eps, "parts": parts} | (
            {"queries": self.queries} if SQUARE in parts else {}
        )

    def check_classes(self, count: int) -> None:
        """Raise ConfigError if a network of ``count`` classes has too few for it."""
        if count < FEWEST_CLASSES and "apgd-t" in _PARTS[self.name]:
            raise ConfigError(
                f"expected {FEWEST_CLASSES} or more classes for {self.name}, whose targeted attack needs them, got "
                f"{count}; use --attack apgd-ce,fab-t,square"
            )

    def __call__(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """See `NamedAttack.__call__`.

        Raises:
            ConfigError: the network has too few classes for it.
            MissingExtraError: pyautoattack is not installed.
        """
        library = _pyautoattack()
        if self.eps == 0:
            return images
        cuda = [images.device] if images.device.type == "cuda" else []
        # It seeds the global generators.
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), _without_its_flags():
            classes = model(images[:1]).shape[1]
            self.check_classes(classes)
            attack = library.AutoAttack(
                model,
                norm="Linf",
                eps=self.eps,
                version="custom",
                attacks=list(_PARTS[self.name]),
                seed=seed,
                device=images.device,
            )
            attack.square.n_queries = self.queries
            attack.apgd.n_restarts = attack.fab.n_restarts = 1
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(_TARGETS, classes - 1)
            found: Tensor
            found, _ = attack.run_standard_evaluation(images, labels, batch_size=len(labels))
        return found.detach()


@contextmanager
def _without_its_flags() -> Iterator[None]:
    """Keep pyautoattack from printing what it finds suspect in each chunk: smart-eval's checks look for the same signs.

    These are ``same-scores``, ``logits``, ``zero-gradients``, ``square`` and, of few classes, `parse_attacks`.
    """
    log = logging.getLogger("auto-attack")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def _pyautoattack() -> Any:
    try:
        import pyautoattack  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingExtraError(
            "expected pyautoattack for AutoAttack and its parts, got none; pip install 'smart-edge[eval]' installs it"
        ) from error
    return pyautoattack


def has_pyautoattack() -> bool:
    """Return whether AutoAttack and its parts can be run."""
    try:
        _pyautoattack()
    except MissingExtraError:
        return False
    return True


def parse_attacks(
    text: str, *, eps: float, steps: int, restarts: int, step_size: float | None, classes: int
) -> list[NamedAttack]:
    """Return the attacks that ``text`` names, separated by commas, each once, without ``clean``.

    Args:
        text: such as ``clean,pgd50x5,autoattack``.
        eps: radius of all, in pixel units.
        steps: of ``pgd`` without figures.
        restarts: likewise.
        step_size: of PGD, None for 2.5 eps / steps.
        classes: that the networks to attack have.

    Raises:
        ConfigError: there is no such attack, one is named twice, a value is out of range, or the classes are too few.
        MissingExtraError: one of them needs pyautoattack, which is not installed.
    """
    attacks: list[NamedAttack] = []
    for name in map(str.strip, text.split(",")):
        if name == CLEAN:
            continue
        figures = _PGD.fullmatch(name)
        if name == "pgd" or figures is not None:
            count = (steps, restarts) if figures is None else (int(figures[1]), int(figures[2]))
            attacks.append(Pgd(Attack(eps=eps, steps=count[0], restarts=count[1], step_size=step_size)))
        elif name in _PARTS:
            _pyautoattack()  # missed now, not after an hour of PGD, as are classes
            part = AutoAttackParts(name, eps)
            part.check_classes(classes)
            attacks.append(part)
        else:
            raise ConfigError(
                f"expected attacks out of {_FORMS}, separated by commas, got {name!a:.60}; write "
                f"clean,pgd50x5,autoattack"
            )
        if any(attacks[-1].name == other.name for other in attacks[:-1]):
            raise ConfigError(f"expected each attack once, got {attacks[-1].name} twice; name it once")
    return attacks
