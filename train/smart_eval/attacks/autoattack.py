"""AutoAttack and its parts, by its authors' code."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from smart_common.errors import MissingExtraError, alternatives
from smart_eval.attacks.base import DRAWS, NamedAttack
from smart_train.attacks import Attack, Model
from smart_train.errors import ConfigError

AUTOATTACK = "autoattack"
SQUARE = "square"
_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        AUTOATTACK: ("apgd-ce", "apgd-t", "fab-t", SQUARE),
        **{part: (part,) for part in ("apgd-ce", "apgd-t", "fab-t", SQUARE)},
    }
)
_RANDOMISED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {AUTOATTACK: ("apgd-ce", "apgd-dlr"), "apgd-ce": ("apgd-ce",)}  # AutoAttack's version "rand"
)
_TARGETS = 9  # classes that the targeted attacks try, or all others where there are fewer
FEWEST_CLASSES = 4  # that the loss of apgd-t is made for: it takes the difference of the first and third-best score
_FEWEST = MappingProxyType({"apgd-t": FEWEST_CLASSES, "apgd-dlr": 3})  # its loss divides by the same difference


@dataclass(frozen=True)
class AutoAttackParts(NamedAttack):
    """AutoAttack's standard version, or one of its four parts alone (Croce and Hein 2020, arXiv 2003.01690).

    pyautoattack, the authors' code, does it: APGD-CE with 100 steps, APGD-T and FAB-T against 9 targets, and Square
    with 5,000 queries, each on what the ones before left, as `AutoAttack._set_version` sets the standard version.
    ``queries`` are Square's. With several ``draws`` it is the version for randomised networks, ``rand``: APGD on the
    cross-entropy and on the difference of logits ratio, each along the mean gradient of so many calls.

    Raises:
        ConfigError: there is no such part, or eps is out of range.
    """

    name: str
    eps: float
    queries: int = 5000
    draws: int = 1

    def __post_init__(self) -> None:
        if self.name not in _PARTS:
            raise ConfigError(f"unknown part of AutoAttack {alternatives(str(self.name), _PARTS)}")
        Attack(eps=self.eps)  # checks the range

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are run, in order."""
        return (_RANDOMISED if self.draws > 1 else _PARTS)[self.name]

    @property
    def description(self) -> str:
        """See `NamedAttack.description`."""
        queries = f", Square with up to {self.queries:,} queries an image" if self.uses_queries else ""
        draws = f", along the mean gradient of {self.draws} calls" if self.draws > 1 else ""
        return f"of AutoAttack: {', '.join(self.parts)}{queries}{draws}"

    @property
    def needs_gradients(self) -> bool:
        """All but Square alone."""
        return self.name != SQUARE

    @property
    def uses_queries(self) -> bool:
        """Square, and AutoAttack, which ends with it."""
        return SQUARE in self.parts

    def record(self) -> dict[str, Any]:
        """See `NamedAttack.record`."""
        queries = {"queries": self.queries} if self.uses_queries else {}
        draws = {"draws": self.draws} if self.draws > 1 else {}
        return {**super().record(), "parts": list(self.parts), **queries, **draws}

    def for_randomised(self) -> NamedAttack:
        """See `NamedAttack.for_randomised`."""
        return replace(self, draws=DRAWS) if self.name in _RANDOMISED else super().for_randomised()

    def check_ready(self, *, classes: int) -> None:
        """See `NamedAttack.check_ready`."""
        _pyautoattack()
        fewest = max(_FEWEST.get(part, 0) for part in self.parts)
        if classes < fewest:
            others = "apgd-ce" if self.draws > 1 else "apgd-ce,fab-t,square"
            raise ConfigError(
                f"expected {fewest} or more classes for {self.name}, whose losses need them, got {classes}; use "
                f"--attack {others}"
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
            self.check_ready(classes=classes)
            attack = library.AutoAttack(
                model,
                norm="Linf",
                eps=self.eps,
                version="custom",
                attacks=list(self.parts),
                seed=seed,
                device=images.device,
            )
            attack.square.n_queries = self.queries
            attack.apgd.n_restarts = attack.fab.n_restarts = 1
            attack.apgd.eot_iter = self.draws
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
            "pyautoattack, which AutoAttack and its parts need, is missing; pip install 'smart-edge[eval]' installs it"
        ) from error
    return pyautoattack


def has_pyautoattack() -> bool:
    """Return whether AutoAttack and its parts can be run."""
    try:
        _pyautoattack()
    except MissingExtraError:
        return False
    return True
