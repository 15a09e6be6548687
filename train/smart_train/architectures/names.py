"""What networks are called, for whoever must not wait for torch."""

from __future__ import annotations

import re
from typing import TypeAlias

Argument: TypeAlias = "int | float | bool | str"

CUSTOM = "custom"
"""What stands in a checkpoint in the place of a name of ours."""

FACTORY_FORM = "PACKAGE.MODULE:FACTORY"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_factory_name(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:factory``; nothing is imported."""
    return _NAME.fullmatch(text) is not None
