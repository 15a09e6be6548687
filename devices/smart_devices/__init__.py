"""What a target device can do: its profile, what this machine is (`detection`) and which engines it runs (`doctor`).

Boundary: standard library only (``cli.py`` modules excepted), so that a bare device can import it; this package
imports only smart_common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_common.errors import MissingExtraError, SmartError
    from smart_common.version import version
    from smart_devices.detection import detect
    from smart_devices.device_profile import (
        PRECISIONS,
        DenseSparse,
        Dla,
        Fact,
        Identity,
        Memory,
        PowerMode,
        Profile,
        Target,
    )
    from smart_devices.engine_rows import EngineInfo, EngineStatus, engine_info, engine_names
    from smart_devices.engines import engine_status
    from smart_devices.errors import UnknownEngineError, UnknownTargetError
    from smart_devices.jetpack import JetPack, JetPackVersion
    from smart_devices.profiles import load_profile, parse_profile, profile_names, profile_of, resolve_target

__all__ = [
    "PRECISIONS",
    "DenseSparse",
    "Dla",
    "EngineInfo",
    "EngineStatus",
    "Fact",
    "Identity",
    "JetPack",
    "JetPackVersion",
    "Memory",
    "MissingExtraError",
    "PowerMode",
    "Profile",
    "SmartError",
    "Target",
    "UnknownEngineError",
    "UnknownTargetError",
    "detect",
    "engine_info",
    "engine_names",
    "engine_status",
    "load_profile",
    "parse_profile",
    "profile_names",
    "profile_of",
    "resolve_target",
    "version",
]

_HOMES = {
    "smart_common.errors": ("MissingExtraError", "SmartError"),
    "smart_common.version": ("version",),
    "smart_devices.detection": ("detect",),
    "smart_devices.device_profile": (
        "PRECISIONS",
        "DenseSparse",
        "Dla",
        "Fact",
        "Identity",
        "Memory",
        "PowerMode",
        "Profile",
        "Target",
    ),
    "smart_devices.engine_rows": ("EngineInfo", "EngineStatus", "engine_info", "engine_names"),
    "smart_devices.engines": ("engine_status",),
    "smart_devices.errors": ("UnknownEngineError", "UnknownTargetError"),
    "smart_devices.jetpack": ("JetPack", "JetPackVersion"),
    "smart_devices.profiles": ("load_profile", "parse_profile", "profile_names", "profile_of", "resolve_target"),
}
__getattr__ = lazy_attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
