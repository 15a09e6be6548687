"""What a target device can do: its profile, what this machine is (`detection`) and which engines it runs (`doctor`).

Boundary: standard library only (``cli.py`` modules excepted), so that a bare device can import it; this package
imports none of the other three.
"""

from __future__ import annotations

from smart_common.errors import MissingExtraError, SmartError
from smart_common.version import version
from smart_devices.detection import detect
from smart_devices.device_profile import PRECISIONS, DenseSparse, Dla, Identity, Memory, PowerMode, Profile, Target
from smart_devices.engine_rows import EngineInfo, EngineStatus, engine_info, engine_names
from smart_devices.engines import engine_status
from smart_devices.errors import UnknownTargetError
from smart_devices.facts import Fact
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
