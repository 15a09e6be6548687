"""The rows of ``--attack``, light enough for a help page, and what a text of several names means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from smart_common.lazy import load
from smart_train.errors import ConfigError

if TYPE_CHECKING:
    from smart_eval.attacks.base import NamedAttack

CLEAN = "clean"
"""Not an attack: the images as they are, measured with every attack."""

_STRENGTH = re.compile(r"(.*?)([1-9][0-9]{0,4})x([1-9][0-9]{0,3})", re.ASCII)


@dataclass(frozen=True)
class AttackRow:
    """An attack that ``--attack`` names.

    Attributes:
        maker: ``"module:attribute"``, what returns the `NamedAttack`: called with the name and eps, and where
            ``counted`` with ``steps``, ``restarts`` and ``step_size`` (None for its own) too.
        counted: whether steps and restarts may follow the name, as in ``pgd50x5``.
    """

    maker: str
    counted: bool = False


_AUTOATTACK = AttackRow("smart_eval.attacks.autoattack:AutoAttackParts")

ATTACKS: Mapping[str, AttackRow] = MappingProxyType(
    {
        "pgd": AttackRow("smart_eval.attacks.pgd:named_pgd", counted=True),
        "autoattack": _AUTOATTACK,
        "apgd-ce": _AUTOATTACK,
        "apgd-t": _AUTOATTACK,
        "fab-t": _AUTOATTACK,
        "square": _AUTOATTACK,
    }
)
"""Every attack by its name; a further one is a file with its class, and a row here."""


def parse_attacks(
    text: str, *, eps: float, steps: int, restarts: int, step_size: float | None, classes: int
) -> list[NamedAttack]:
    """Return the attacks that ``text`` names, separated by commas, each once, without ``clean``.

    Args:
        text: such as ``clean,pgd50x5,autoattack``.
        eps: radius of all, in pixel units.
        steps: of counted attacks such as ``pgd`` where no figures follow the name.
        restarts: likewise.
        step_size: of counted attacks, None for their own: 2.5 eps / steps of PGD.
        classes: that the networks to attack have.

    Raises:
        ConfigError: there is no such attack, one is named twice, a value is out of range, or the classes are too few.
        MissingExtraError: one of them needs a library that is not installed.
    """
    attacks: list[NamedAttack] = []
    for name in map(str.strip, text.split(",")):
        if name == CLEAN:
            continue
        figures = _STRENGTH.fullmatch(name)
        plain = name if figures is None else figures[1]
        row = ATTACKS.get(plain)
        if row is None or (figures is not None and not row.counted):
            known = ", ".join(f"{known}, {known}50x5" if one.counted else known for known, one in ATTACKS.items())
            raise ConfigError(
                f"unknown attack {name!a:.60}; choose out of {CLEAN}, {known}, separated by commas (50x5: 50 steps, 5 "
                f"restarts)"
            )
        if figures is not None:
            steps_, restarts_ = int(figures[2]), int(figures[3])
        else:
            steps_, restarts_ = steps, restarts
        strength = {"steps": steps_, "restarts": restarts_, "step_size": step_size} if row.counted else {}
        attack: NamedAttack = load(row.maker)(plain, eps, **strength)
        attack.check_ready(classes=classes)  # what is missing is missed now, not after an hour of attacks
        if any(attack.name == other.name for other in attacks):
            raise ConfigError(f"{attack.name} is named twice in --attack; name it once")
        attacks.append(attack)
    return attacks
