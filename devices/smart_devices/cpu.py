"""Which processor this machine has, and what of it makes int8 and half precision fast."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from smart_devices.sysfs import printable, read_bytes, stripped

_LIMIT = 64 * 1024  # bytes: the first core is all that is read, and a server's file has hundreds
# As /proc/cpuinfo spells them. x86: vector widths, int8 dot products, bfloat16, matrix units. Arm: half precision,
# int8 dot products, int8 and bfloat16 matrix products, scalable vectors.
_FEATURES = {
    "x86_64": ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    "aarch64": ("asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}
_OTHER_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Cpu:
    """A machine's processor.

    Attributes:
        machine: Its architecture in small letters, as in ``x86_64`` and ``aarch64``; None while unknown.
        name: Its name, None where it does not say.
        features: Which of the instructions that matter it has, as the kernel spells them.
        lacks: Which of them it has not.
    """

    machine: str | None
    name: str | None
    features: tuple[str, ...]
    lacks: tuple[str, ...]


def read_cpu(root: Path = Path("/"), *, machine: str | None) -> Cpu:
    """Return the processor that ``/proc/cpuinfo`` describes.

    Args:
        root: Where ``proc`` lies.
        machine: Its architecture; None to judge by the file, which a machine that does not run does not have.
    """
    fields = _cpuinfo(root)
    has = fields.get("flags", fields.get("Features", "")).split()
    if machine is None:
        machine = "x86_64" if "flags" in fields else "aarch64" if "CPU implementer" in fields else ""
    machine = machine.lower()
    known = _FEATURES.get(_OTHER_NAMES.get(machine, machine), ()) if has else ()
    return Cpu(
        machine=machine or None,
        name=printable(fields.get("model name", "")) or None,
        features=tuple(feature for feature in known if feature in has),
        lacks=tuple(feature for feature in known if feature not in has),
    )


def cpu_model(root: Path = Path("/")) -> str:
    """Return the processor's name for people; Arm boards have none in /proc/cpuinfo, there the machine type must do."""
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine()


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return what /proc/cpuinfo says of the first core; nothing where the system does not tell."""
    try:
        text = stripped(read_bytes(root / "proc/cpuinfo", limit=_LIMIT))
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found
