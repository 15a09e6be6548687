"""Which Jetson module this is: by part number alone, from the device tree or from what the board was flashed with.

The part number is the only thing that says it. The ``model`` text is the carrier maker's to choose ("NVIDIA Jetson Orin
NX Engineering Reference Developer Kit" was seen on an Orin Nano), memory sizes and power mode numbers repeat.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from smart_devices.sysfs import Files, printable

# /proc/device-tree is a link to the other, which a mounted disc and some containers have alone.
_TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")
# Carrier and module: "nvidia,p3768-0000+p3767-0005-super"; other distributions put entries of their own vendor before.
_PAIR = re.compile(r"[^,+]+,[^,+]+\+(p\d{4}-\d{4})(?:[-+].*)?")
# The module, or the carrier, alone: "nvidia,p3767-0005". Only these boards are modules.
_ALONE = re.compile(r"nvidia,(p(?:2888|3448|3668|3701|3767|3834)-\d{4})(?:-super)?")
_SOC = re.compile(r"nvidia,(tegra\d{3})")
# Board, fab and stock-keeping unit of the module: "TNSPEC 3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-".
_FLASHED = re.compile(r"^TNSPEC[ \t]+(\d{4})-[^-\s]*-(\d{4})-(\S*)", re.MULTILINE)

PRODUCTS = {
    "p2888-0001": "Jetson AGX Xavier 16GB",
    "p2888-0003": "Jetson AGX Xavier 32GB",
    "p2888-0004": "Jetson AGX Xavier 32GB",
    "p2888-0005": "Jetson AGX Xavier 64GB",
    "p2888-0006": "Jetson AGX Xavier 8GB",
    "p2888-0008": "Jetson AGX Xavier Industrial",
    "p3448-0000": "Jetson Nano 4GB",
    "p3448-0002": "Jetson Nano 4GB",
    "p3448-0003": "Jetson Nano 2GB",
    "p3668-0000": "Jetson Xavier NX 8GB",
    "p3668-0001": "Jetson Xavier NX 8GB",
    "p3668-0003": "Jetson Xavier NX 16GB",
    "p3701-0000": "Jetson AGX Orin developer kit module, 32 or 64 GB",
    "p3701-0002": "IGX Orin",
    "p3701-0004": "Jetson AGX Orin 32GB",
    "p3701-0005": "Jetson AGX Orin 64GB",
    "p3701-0008": "Jetson AGX Orin Industrial",
    "p3767-0000": "Jetson Orin NX 16GB",
    "p3767-0001": "Jetson Orin NX 8GB",
    "p3767-0003": "Jetson Orin Nano 8GB",
    "p3767-0004": "Jetson Orin Nano 4GB",
    "p3767-0005": "Jetson Orin Nano 8GB",
    "p3834-0000": "Jetson T4000",
    "p3834-0008": "Jetson T5000",
}
"""What the modules are sold as (rbonghi/jetson_stats jetson_variables.py and OE4T/meta-tegra conf/machine, as read)."""


@dataclass(frozen=True)
class Module:
    """What a source says of the module.

    Attributes:
        part: Its part number, as in ``p3767-0005``; None when the source names none.
        soc: Its system on chip, as in ``tegra234``; None when the source names none.
        super_modes: Whether it was flashed with the configuration that has the Super power modes.
    """

    part: str | None = None
    soc: str | None = None
    super_modes: bool = False


def read_compatible(files: Files) -> bytes:
    """Return the device tree's ``compatible`` property, empty without a device tree (as in a container)."""
    return next((data for tree in _TREES if (data := files.read(f"{tree}/compatible"))), b"")


def read_model(files: Files) -> str | None:
    """Return the device tree's ``model``: text for people, never to be decided by."""
    return next((printable(text) for tree in _TREES if (text := files.text(f"{tree}/model"))), None)


def parse_compatible(data: bytes) -> Module | None:
    """Return the Jetson module that a device tree's ``compatible`` names; None for a machine that is no Jetson.

    Args:
        data: Entries that each end in NUL, from the most to the least particular.
    """
    entries = [entry.decode("utf-8", errors="replace").strip() for entry in data.split(b"\0")]
    pairs = [match[1] for match in map(_PAIR.fullmatch, entries) if match]
    alone = [match[1] for match in map(_ALONE.fullmatch, entries) if match]
    socs = [match[1] for match in map(_SOC.fullmatch, entries) if match]
    if not (socs or pairs or alone):
        return None
    return Module(
        part=next(iter(pairs + alone), None),
        soc=next(iter(socs), None),
        super_modes=any(entry.endswith("-super") for entry in entries),
    )


def parse_boot_control(text: str) -> Module | None:
    """Return the module that ``/etc/nv_boot_control.conf`` was written for, None when it does not say."""
    match = _FLASHED.search(text)
    if match is None:
        return None
    return Module(part=f"p{match[1]}-{match[2]}", super_modes="-super" in match[3])
