"""What is written beside a plan: what it depends on, its size and sum, and what else is known of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smart_runtime.engines.plan_keys import Key, canonical

PLAN, KERNELS, META = "plan", "kernels", "meta.json"
"""The files of an entry of the cache."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What an entry of the cache says of itself; ``size`` and ``sha256`` are the plan's."""

    key: Key
    size: int
    sha256: str
    facts: Mapping[str, Any]
    installed_ns: int  # since 1970

    def written(self) -> bytes:
        """Return it as a file, with a sum of its own."""
        plan = {"bytes": self.size, "sha256": self.sha256, "installed_ns": self.installed_ns}
        said = {"key": self.key, "plan": plan, "facts": self.facts}
        return json.dumps({**said, "sha256": hashlib.sha256(canonical(said)).hexdigest()}, indent=1).encode() + b"\n"

    @classmethod
    def read(cls, data: bytes) -> Meta:
        """Return what `written` has written; DamagedError, if it is not as it was."""
        try:
            said = json.loads(data)
            digest = said.pop("sha256")
            if digest != hashlib.sha256(canonical(said)).hexdigest():
                raise DamagedError(f"{META} is not as it was written")
            plan = said["plan"]
            return cls(
                key=dict(said["key"]),
                size=plan["bytes"],
                sha256=plan["sha256"],
                facts=said["facts"],
                installed_ns=int(plan["installed_ns"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{META} is no description of a plan") from error


class DamagedError(Exception):
    """An entry that is not as it was written."""
