"""Recorded boards: what nine machines show of themselves, as files under a root, commands and graphics cards.

A to F are Jetsons as captured by their owners in public reports, completed where a capture is silent with values that
the same reports give for another unit (an Orin NX at another L4T release, say); G to I are a PC with a card, a machine
without any, and a container on a Jetson.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smart_devices.detection import Card, Cards

Content = str | bytes
_TREE = "/proc/device-tree"
_ORIN_NANO_MODES = (
    "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
)
_XAVIER_NX_MODES = (
    *("MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE", "MODE_10W_2CORE", "MODE_10W_4CORE", "MODE_10W_DESKTOP"),
    *("MODE_20W_2CORE", "MODE_20W_4CORE", "MODE_20W_6CORE"),
)


def release(l4t: str, date: str, *, board: str = "generic") -> str:
    """The first line of ``/etc/nv_tegra_release``; its BOARD never is the board."""
    major, _, revision = l4t.partition(".")
    return f"# R{major} (release), REVISION: {revision}, GCID: 42132812, BOARD: {board}, EABI: aarch64, DATE: {date}\n"


def modes(*names: str, default: int) -> str:
    """An ``nvpmodel.conf`` with these modes, in its grammar."""
    blocks = (
        f"< POWER_MODEL ID={i} NAME={name} >\nCPU_ONLINE CORE_0 1\nGPU MAX_FREQ -1\n" for i, name in enumerate(names)
    )
    head = "< PARAM TYPE=FILE NAME=CPU_ONLINE >\nCORE_0 /sys/devices/system/cpu/cpu0/online\n"
    return head + "\n".join(blocks) + f"< PM_CONFIG DEFAULT={default} >\n"


def packages(**versions: str) -> str:
    """dpkg's status file with these packages installed, and one that is not."""
    entries = [
        f"Package: {name.replace('_', '-')}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {version}\n"
        f"Description: a package\n with a second line: of text\n"
        for name, version in versions.items()
    ]
    removed = "Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.6.2.3-1+cuda12.2\n"
    return "\n".join([*entries, removed])


def cuda(version: str) -> str:
    """CUDA's ``version.json``."""
    return json.dumps({"cuda": {"name": "CUDA SDK", "version": version}, "cuda_nvcc": {"version": "0.0.0"}})


@dataclass(frozen=True)
class Board:
    """One recorded machine.

    Attributes:
        files: What its files hold, by absolute path.
        links: Where its links lead.
        commands: What its commands print.
        cards: What NVIDIA's management library answers.
        architecture: Its ``platform.machine()``.
    """

    files: Mapping[str, Content] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    cards: Cards = field(default_factory=Cards)
    architecture: str = "aarch64"

    def write(self, root: Path) -> Path:
        """Write the files and links under ``root`` and return it."""
        for path, content in self.files.items():
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        for path, where in self.links.items():
            (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (root / path.lstrip("/")).symlink_to(where)
        return root

    def run(self, command: Sequence[str]) -> str | None:
        """Answer as the board would."""
        return self.commands.get(tuple(command))


A = Board(  # AGX Orin 64GB developer kit, L4T 36.4.7
    files={
        f"{_TREE}/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        f"{_TREE}/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0nvidia,tegra23x\0",
        "/etc/nv_tegra_release": release("36.4.7", "Thu Sep 18 22:54:44 UTC 2025"),
        "/var/lib/dpkg/status": packages(
            nvidia_jetpack="6.2.1+b38",
            nvidia_l4t_core="36.4.7-20250918154033",
            python3_libnvinfer="10.3.0.30-1+cuda12.5",
        ),
        "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
    },
    links={"/usr/bin/python3": "python3.10"},
    commands={("nvpmodel", "-q"): "NV Power Mode: MAXN\n0\n"},
)
B = Board(  # Orin Nano 8GB developer kit with Super modes, L4T 36.4.3
    files={
        f"{_TREE}/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        f"{_TREE}/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "/etc/nv_boot_control.conf": "TNSPEC 3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-\n",
        "/etc/nv_tegra_release": release("36.4.3", "Wed Jan  8 01:49:37 UTC 2025")
        + "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
        "/etc/nvpmodel/nvpmodel_p3767_0003_super.conf": modes("15W", "25W", "MAXN_SUPER", "7W", default=1),
        "/var/lib/nvpmodel/status": "pmode:0002\n",
    },
    links={"/etc/nvpmodel.conf": "/etc/nvpmodel/nvpmodel_p3767_0003_super.conf", "/usr/bin/python3": "python3.10"},
)
C = Board(  # the same kit, L4T 39.2.1
    files={
        f"{_TREE}/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        f"{_TREE}/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "/etc/nv_tegra_release": release("39.2.1", "Fri Aug  7 05:54:22 AM UTC 2026"),
        "/var/lib/dpkg/status": packages(
            nvidia_jetpack="7.2.1-b49", nvidia_l4t_core="39.2.1-20260806224157", libnvinfer10="10.16.2.10-1+cuda13.2"
        ),
        "/usr/local/cuda-13.2/version.json": cuda("13.2.2"),
    },
    links={
        "/usr/local/cuda": "/etc/alternatives/cuda",
        "/etc/alternatives/cuda": "/usr/local/cuda-13.2",
        "/usr/bin/python3": "python3.12",
    },
    commands={("nvpmodel", "-q"): "NV Power Mode: 25W\n1\n"},
)
D = Board(  # Orin NX 16GB, L4T 36.3
    files={
        f"{_TREE}/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
        f"{_TREE}/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
        "/etc/nv_tegra_release": release("36.3.0", "Mon May  6 17:34:21 UTC 2024"),
        "/etc/nvpmodel.conf": modes("MAXN", "10W", "15W", "25W", default=2),
        "/var/lib/dpkg/status": packages(python3_libnvinfer="8.6.2.3-1+cuda12.2"),
        "/usr/local/cuda/lib64/libcudart.so.12.2.140": b"\x7fELF",
    },
)
E = Board(  # Xavier NX developer kit, L4T 35.4.1
    files={
        f"{_TREE}/model": "NVIDIA Jetson Xavier NX Developer Kit\0",
        f"{_TREE}/compatible": "nvidia,p3509-0000+p3668-0001\0nvidia,tegra194\0",
        "/etc/nv_tegra_release": release("35.4.1", "Tue Aug  1 19:57:35 UTC 2023", board="t186ref"),
        "/etc/nvpmodel.conf": modes(*_XAVIER_NX_MODES, default=5),
        "/var/lib/nvpmodel/status": "pmode:0008 fmode:fan_mode_quiet\n",
        "/usr/local/cuda/version.json": cuda("11.4.315"),
        "/var/lib/dpkg/status": packages(python3_libnvinfer="8.5.2.2-1+cuda11.4"),
        "/usr/lib/python3.8/dist-packages/tensorrt/__init__.py": "",
    },
    links={"/usr/bin/python3": "python3.8"},
)
F = Board(  # AGX Thor developer kit, L4T 38.4
    files={
        f"{_TREE}/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        f"{_TREE}/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
        "/etc/nv_tegra_release": release("38.4.0", "Wed Dec 31 00:15:19 UTC 2025") + "# KERNEL_VARIANT: oot\n",
    },
    commands={("nvpmodel", "-q"): "NV Power Mode: 120W\n1\n"},
    # The library answers on a Jetson too, and must not make a PC of it.
    cards=Cards(cards=(Card(name="NVIDIA Thor", compute_capability="11.0", memory_gib=None),), driver="580.00"),
)
G = Board(  # a PC with an RTX 4090
    files={"/proc/cpuinfo": "model name\t: AMD EPYC 7543 32-Core Processor\nflags\t\t: fpu avx avx2\n"},
    cards=Cards(
        cards=(Card(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory_gib=24564 / 1024),),
        driver="580.65.06",
    ),
    architecture="x86_64",
)
H = Board(  # a virtual machine without GPU
    files={"/proc/cpuinfo": "model name\t: AMD EPYC\nflags\t\t: avx2 avx512f avx512_vnni amx_int8\n"},
    architecture="x86_64",
)
I = Board(  # noqa: E741  # the ninth  # a container on a Jetson: /sys/firmware is masked, the release file empty
    files={
        "/etc/nv_tegra_release": "",
        "/proc/sys/kernel/osrelease": "5.15.148-tegra\n",
        "/dev/nvhost-ctrl-gpu": "",
        "/dev/nvmap": "",
        "/sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    },
    links={_TREE: "/sys/firmware/devicetree/base"},
)

BOARDS: Mapping[str, Board] = {
    "AGX Orin 64GB": A,
    "Orin Nano Super": B,
    "Orin Nano Super, JetPack 7": C,
    "Orin NX 16GB": D,
    "Xavier NX": E,
    "AGX Thor": F,
    "PC with a card": G,
    "host without GPU": H,
    "container on a Jetson": I,
}
