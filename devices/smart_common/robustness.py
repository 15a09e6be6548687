"""Is a path that is meant for attacked images robust at all? One judgement for every command that shows figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smart_common.errors import shortened
from smart_common.roles import Role

HOLDS_NOTHING = 0.1
"""An accuracy under attack, as a fraction, at or below which a path holds nothing, however many classes there are."""


@dataclass(frozen=True)
class UnderAttack:
    """What a path of this ``role`` holds under the strongest attack measured: ``accuracy`` and ``interval`` in [0, 1].

    The interval, at 95%, is the accuracy itself, twice, where nobody recorded one.
    """

    role: Role
    accuracy: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.3f}" if low == high else f"{self.accuracy:.3f} [{low:.3f}, {high:.3f}]"


def robustness_warnings(paths: Mapping[str, UnderAttack], *, attack: str) -> dict[str, tuple[str, ...]]:
    """Return, for each path that sees attacks and does not deserve the trust, a sentence for each reason.

    It is no more robust than a path for clean images, or not clearly, since their intervals overlap; or it holds at
    most ``HOLDS_NOTHING``. ``attack`` is what the figures were measured under, in words.
    """
    clean = {path: found for path, found in paths.items() if not found.role.sees_attacks}
    best = max(clean, key=lambda path: clean[path].accuracy, default=None)
    warnings = {}
    for path, found in paths.items():
        reasons = []
        if found.role.sees_attacks and best is not None and found.interval[0] <= clean[best].interval[1]:
            no_more = found.accuracy <= clean[best].accuracy
            reasons.append(
                f"the path {path!a} is {'no' if no_more else 'not clearly'} more robust than {best!a}: {found} against "
                f"{clean[best]} under {attack}"
                + ("" if no_more else ", and their 95% intervals overlap; measure on more images")
            )
        if found.role.sees_attacks and found.accuracy <= HOLDS_NOTHING:
            reasons.append(
                f"the path {path!a} holds {found.accuracy:.1%} under {attack}, the strongest attack measured: do not "
                "rely on it under attack; train it longer, or for a smaller eps"
            )
        if reasons:
            warnings[path] = tuple(reasons)
    return warnings


def warnings_of_metrics(roles: Mapping[str, Role], metrics: Mapping[str, Mapping[str, Any] | None]) -> tuple[str, ...]:
    """Return the sentences of `robustness_warnings` on what a checkpoint or a manifest records; none where it does not.

    ``metrics``, by path, may come from anyone: what is no accuracy is left out.
    """
    found, attacks = {}, []
    for path, role in roles.items():
        record = metrics.get(path) or {}
        accuracy: Any = record.get("robust_accuracy")
        interval: Any = record.get("robust_interval")
        if not _is_fraction(accuracy):
            continue
        known = isinstance(interval, list) and len(interval) == 2 and all(map(_is_fraction, interval))
        low, high = interval if known else (accuracy, accuracy)
        found[path] = UnderAttack(role, accuracy, (low, high))
        attacks.append(record.get("attack"))
    named = attacks[0] if attacks and isinstance(attacks[0], str) and len(set(map(repr, attacks))) == 1 else "attack"
    judged = robustness_warnings(found, attack=shortened(named))
    return tuple(sentence for sentences in judged.values() for sentence in sentences)


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
