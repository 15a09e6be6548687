"""Which processor this machine has."""

from __future__ import annotations

import platform
from pathlib import Path

# What tells one kind of processor from another: x86 has the first five, Arm the others. A name alone does not, since
# virtual machines give many the same one.
_IDENTITY = (
    "model name", "vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU architecture", "CPU variant",
    "CPU part",
)  # fmt: skip


def cpu_model(root: Path = Path("/")) -> str:
    """Return the processor's name for people; Arm boards have none in /proc/cpuinfo, there the machine type must do."""
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine()


def cpu_identity(root: Path = Path("/")) -> str:
    """Return what tells this kind of processor from others, on one line."""
    found = _cpuinfo(root)
    numbers = [f"{key} {found[key]}" for key in _IDENTITY[1:] if key in found]
    return ", ".join([cpu_model(root), *numbers])


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return what /proc/cpuinfo says of the first core; nothing where the system does not tell."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in _IDENTITY and value.strip():
            found.setdefault(key.strip(), value.strip())
    return found
