"""What options may be and networks are called, kept where help pages need no torch for it.

``ARCHITECTURES`` and ``DATA_SPECS`` name rows of tables that take torch to import; a test holds them to these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from smart_train.masking.pattern_rows import structure_names

Argument: TypeAlias = "int | float | bool | str"
"""Of a network's factory."""

MAX_INTEGER = 2**31 - 1
"""Either way, what a checkpoint takes as an integer of a structure or network; above any count of a training."""

MAX_DECIMAL = 1e6
"""Either way, what a checkpoint's other numbers are below."""

MAX_ARGUMENTS = 16
"""Of a network's factory."""

Average = Literal["none", "ema", "swa"]
Budget = Literal["uniform", "erk"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
Schedule = Literal["cosine", "cyclic", "steps"]
Scope = Literal["block", "all"]
Score = Literal["magnitude", "gradient"]
Shares = Literal["weights", "nothing"]

ARCHITECTURES = (
    *("resnet8", "resnet18", "resnet20", "resnet34", "resnet50", "preact-resnet18", "preact-resnet18-raw"),
    *("wrn16-8", "wrn28-10", "wrn40-2"),
)
ATTACKS: Mapping[str, str] = {
    "pgd": "smart_train.attacks:PGD",
    "fgsm-rs": "smart_train.attacks:FGSM_RS",
    "n-fgsm": "smart_train.attacks:N_FGSM",
}
"""Where the `AttackKind` of each name is; a further one is a file with its own, and a row here."""
DATA_SPECS = "digits, cifar10, cifar100, svhn, stl10, npz:FILE or folder:DIR"
AVERAGES: tuple[Average, ...] = get_args(Average)
BUDGETS: tuple[Budget, ...] = get_args(Budget)
MASK_MODES: Mapping[str, str] = {
    "gradual": "smart_train.masking.modes.gradual:Gradual",
    "regrow": "smart_train.masking.modes.regrow:Regrow",
    "static": "smart_train.masking.modes.static:Static",
    "complementary": "smart_train.masking.modes.complementary:Complementary",
    "shared": "smart_train.masking.modes.shared:Shared",
    "shared-early": "smart_train.masking.modes.shared_early:SharedEarly",
}
"""Where the `MaskMode` of each name is; a further one is a file with its own, and a row here."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
SCOPES: tuple[Scope, ...] = get_args(Scope)
SCORES: tuple[Score, ...] = get_args(Score)
SHARES: tuple[Shares, ...] = get_args(Shares)
STRUCTURES = structure_names()

DEFAULT_ALIGN = 8

CUSTOM = "custom"
"""What stands in a checkpoint in the place of a name of ours."""

LIBRARIES = ("torchvision", "timm")
"""Whose networks have names too: ``torchvision:resnet18``, ``timm:resnet18.a1_in1k``."""

FACTORY_FORM = "PACKAGE.MODULE:FACTORY"
"""How a network of the user's own is named; ``FACTORY_FILE`` is another way."""
FACTORY_FILE = "FILE.py:FACTORY"
_NAMES = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_FACTORY_NAME = re.compile(rf"({_NAMES}|.+\.py):{_NAMES}")


def is_factory_reference(text: str) -> bool:
    """Whether ``text`` is what a checkpoint may remember of a factory: no folders, and nothing a shell would read."""
    return re.fullmatch(rf"({_NAMES}|[\w-][\w.-]*\.py):{_NAMES}", text) is not None


def is_library_name(text: str) -> bool:
    """Whether ``text`` has the form of a network of one of `LIBRARIES`; it need not be installed, nor have it."""
    return is_factory_name(text) and text.partition(":")[0] in LIBRARIES


def is_factory_name(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:factory`` or ``file.py:factory``; nothing is imported."""
    return _FACTORY_NAME.fullmatch(text) is not None and text.isprintable()
