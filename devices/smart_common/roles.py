"""What a deployed path is for. The role decides by what a path is selected, attacked, calibrated and judged."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Role(str, Enum):
    """What kind of images a path is meant for."""

    CLEAN = "clean"
    ATTACKED = "attacked"
    BOTH = "both"

    @property
    def sees_attacks(self) -> bool:
        """Whether its accuracy under attack counts."""
        return self is not Role.CLEAN

    @property
    def sees_clean_images(self) -> bool:
        """Whether its accuracy on clean images counts."""
        return self is not Role.ATTACKED


def default_role(path: str) -> Role:
    """Return the role of a path that nobody gave one: checkpoints and bundles from before there were roles."""
    return {"clean": Role.CLEAN, "robust": Role.ATTACKED}.get(path, Role.BOTH)


def clean_and_attacked(roles: Mapping[str, Role]) -> tuple[str, str] | None:
    """Return the first path for clean images and the first one for attacked ones; None where one is missing.

    They are what a tripwire watches and what a mix lies between.
    """
    clean, attacked = (
        next((path for path, role in roles.items() if role is wanted), None) for wanted in (Role.CLEAN, Role.ATTACKED)
    )
    return None if clean is None or attacked is None else (clean, attacked)
