"""Why another path answers, and by whose will: somebody's hand, or a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

HAND = "hand"
"""Whoever assigns `SmartModel.path` or calls `SmartModel.switch`; a policy goes by its own name."""


@dataclass(frozen=True)
class Cause:
    """Why a path is to answer.

    ``by`` is `HAND`, the name of a policy, or "" for the model itself, which restores a path. ``details`` returns what
    the audit log is to keep of the policy's state; it is called later, in another thread.
    """

    reason: str
    by: str = HAND
    details: Callable[[], object] | None = None

    @property
    def of_policy(self) -> bool:
        """Whether a policy wants it."""
        return self.by not in {HAND, ""}


RESTORED = Cause("", by="")
"""The old path comes back since the new one failed."""
