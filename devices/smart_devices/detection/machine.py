"""Put together what a machine is: a Jetson, a PC with NVIDIA cards, or a CPU."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smart_devices.cpu import Cpu, read_cpu
from smart_devices.detection import device_tree, nvpmodel, releases
from smart_devices.detection.device_tree import Module
from smart_devices.detection.nvpmodel import LiveMode, Run
from smart_devices.detection.releases import Software
from smart_devices.device_profile import Kind
from smart_devices.jetpack import JetPackVersion
from smart_devices.nvml import Gpu, open_gpus
from smart_devices.profiles import profile_of
from smart_devices.sysfs import Files

_HERE = Path("/")
# What the kernel of a Jetson shows in a container too, where the device tree is masked.
_DEVICES = ("/dev/nvhost-ctrl-gpu", "/dev/nvmap")
_NO_JETSONS = ("x86_64", "amd64")
_MEMORY_TOLERANCE = 0.125  # a 16 GB card was seen to report 15 GiB: the driver keeps some
CONTAINERS = ("/.dockerenv", "/run/.containerenv")
"""What Docker and Podman leave in a container."""


@dataclass(frozen=True)
class Card:
    """One graphics card; what it does not tell is None.

    Attributes:
        name: As in ``NVIDIA GeForce RTX 4090``.
        compute_capability: As in ``8.9``.
        memory_gib: Its memory in GiB, a little less than it is sold with.
    """

    name: str
    compute_capability: str | None
    memory_gib: float | None

    def may_have(self, memory_gb: float | None) -> bool:
        """Say whether its memory can be that of a card sold with ``memory_gb``; yes while either is unknown."""
        if memory_gb is None or self.memory_gib is None:
            return True
        return abs(self.memory_gib - memory_gb) <= _MEMORY_TOLERANCE * memory_gb


@dataclass(frozen=True)
class Cards:
    """The graphics cards of a machine.

    Attributes:
        cards: All that answer, in the library's order.
        driver: The driver's version, None when there is none to ask.
        reason: Why there are no cards, as part of a sentence; None when there are.
    """

    cards: tuple[Card, ...] = ()
    driver: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Jetson:
    """What only a Jetson has.

    Attributes:
        module: The module's part number, as in ``p3767-0005``; None while unknown.
        product: What that module is sold as; None while unknown.
        soc: Its system on chip, as in ``tegra234``; None while unknown.
        super_modes: Whether the board was flashed with the configuration that has the Super power modes.
        model: The device tree's text for people; it names carriers rather than modules.
        container: Whether this looks like a container: the kernel is a Jetson's and the device tree is masked.
        l4t: The L4T release; in a container that of the host, where it is given at all.
        jetpack: The JetPack release and how it is known.
        power_mode: The live power mode; None when nothing says so.
    """

    module: str | None
    product: str | None
    soc: str | None
    super_modes: bool
    model: str | None
    container: bool
    l4t: str | None
    jetpack: JetPackVersion | None
    power_mode: LiveMode | None


@dataclass(frozen=True)
class Machine:
    """What a machine is.

    Attributes:
        kind: As a profile has it.
        verdict: What it is, for people.
        profile: The name of its profile; None when it has none.
        reason: Why it has no profile; None when it has one.
        jetson: What only a Jetson has, else None.
        cards: The graphics cards of a PC; none on a Jetson.
        cpu: Its processor.
        software: What the system's packages installed.
        notes: What else a user should know, in sentences.
    """

    kind: Kind
    verdict: str
    profile: str | None
    reason: str | None
    jetson: Jetson | None
    cards: Cards
    cpu: Cpu
    software: Software
    notes: tuple[str, ...]


def read_cards(*, open_all: Callable[[], tuple[Gpu, ...] | str] = open_gpus) -> Cards:
    """Return the graphics cards that NVIDIA's management library knows.

    Not for Jetsons: a Jetson's library knows neither memory nor clocks, and answering it does not make a machine a PC.

    Args:
        open_all: Opens them, or says in words why there is none.
    """
    gpus = open_all()
    if isinstance(gpus, str):
        return Cards(reason=gpus)
    return Cards(cards=tuple(map(_card, gpus)), driver=gpus[0].driver)


def _card(gpu: Gpu) -> Card:
    memory = gpu.memory_bytes
    return Card(gpu.name, gpu.compute_capability, None if memory is None else round(memory / 2**30, 2))


def detect(
    root: Path = _HERE,
    *,
    run: Run | None = None,
    cards: Callable[[], Cards] | None = None,
    architecture: str | None = None,
) -> Machine:
    """Return what the machine is whose files are under ``root``.

    A Jetson is known by its module's part number alone, a card by its name and memory, a CPU by its architecture. What
    is not known is said to be unknown, never guessed. Nothing is written and nothing raises for what files hold.

    Args:
        root: ``/`` for this machine; else where the disc of another one is mounted, or a recorded one.
        run: Runs a command and returns what it printed; as it stands, on this machine, no command for another.
        cards: Asks for graphics cards; as it stands, NVIDIA's library, not asked for another machine.
        architecture: As ``platform.machine()`` gives it; as it stands, this machine's, judged by files for another.
    """
    files = Files(root)
    here = root == _HERE
    cpu = read_cpu(root, machine=architecture or (platform.machine() or None if here else None))
    packages = releases.read_packages(files)
    software = releases.read_software(files, packages)
    l4t = releases.read_l4t(files, packages)
    tree = device_tree.read_compatible(files)
    flashed = device_tree.parse_boot_control(files.text("/etc/nv_boot_control.conf") or "")
    live = device_tree.parse_compatible(tree)
    kernel, contained = _kernel_of_a_jetson(files), any(map(files.exists, CONTAINERS))
    # An image made for Jetsons has their release file or package on any Arm server that runs it.
    evidence = flashed is not None or kernel or (l4t is not None and not contained)
    if live is None and (tree or not evidence or cpu.machine in _NO_JETSONS):
        return _pc(cpu, software, (cards or (read_cards if here else Cards))())
    module, notes = _module(live, flashed)
    jetson = Jetson(
        module=module.part,
        product=device_tree.PRODUCTS.get(module.part or ""),
        soc=module.soc,
        super_modes=module.super_modes,
        model=device_tree.read_model(files),
        container=not tree and (kernel or contained),
        l4t=l4t,
        jetpack=releases.jetpack_version(l4t, packages),
        power_mode=nvpmodel.live_mode(files, run or (nvpmodel.run_command if here else nvpmodel.run_nothing)),
    )
    return _jetson(cpu, software, jetson, notes)


def _kernel_of_a_jetson(files: Files) -> bool:
    release = files.text("/proc/sys/kernel/osrelease") or ""
    return release.endswith("-tegra") or any(map(files.exists, _DEVICES))


def _module(live: Module | None, flashed: Module | None) -> tuple[Module, tuple[str, ...]]:
    """Return the module, the device tree's word first, and what to say if the two sources differ."""
    if live is None or live.part is None:
        known = live or Module()
        if flashed is None:
            return known, ()
        return Module(part=flashed.part, soc=known.soc, super_modes=known.super_modes or flashed.super_modes), ()
    if flashed is None or flashed.part == live.part:
        return live, ()
    return live, (
        f"the device tree, which counts, says module {live.part}; /etc/nv_boot_control.conf says {flashed.part}",
    )


def _jetson(cpu: Cpu, software: Software, jetson: Jetson, notes: tuple[str, ...]) -> Machine:
    profile = None if jetson.module is None else profile_of(jetson.module)
    reason = None
    if profile is not None:
        verdict = f"{profile.title} ({jetson.module})"
        if jetson.product is not None and jetson.product not in profile.title:
            notes = (*notes, f"module {jetson.module}: {jetson.product}")
        if profile.export_only is not None:
            notes = (*notes, profile.export_only)
    elif jetson.product is not None:
        verdict = f"NVIDIA {jetson.product} ({jetson.module})"
        reason = f"there is no profile for module {jetson.module}"
    elif jetson.module is not None:
        verdict = f"unknown Jetson ({jetson.module})"
        reason = f"module {jetson.module} is not known"
    elif jetson.container:
        verdict = "Jetson, module unknown (container)"
        reason = "the device tree, which names the module, is masked in a container: name the target yourself"
    else:
        verdict = "unknown Jetson"
        reason = "nothing names the module's part number: neither the device tree nor /etc/nv_boot_control.conf"
    if jetson.l4t is not None and jetson.jetpack is None:
        notes = (*notes, f"L4T {jetson.l4t} belongs to no JetPack release that is known here")
    return Machine(
        kind="jetson",
        verdict=verdict,
        profile=None if profile is None else profile.name,
        reason=reason,
        jetson=jetson,
        cards=Cards(reason="a Jetson's GPU is part of its module"),
        cpu=cpu,
        software=software,
        notes=notes,
    )


def _pc(cpu: Cpu, software: Software, cards: Cards) -> Machine:
    name = cards.cards[0].name if cards.cards else cpu.machine or ""
    profile = profile_of(name)
    if profile is not None and cards.cards and not cards.cards[0].may_have(profile.memory.size.value):
        profile = None  # RTX 3060 is the name of a card with 8 GB too
    reason = None
    if profile is None:
        reason = "what CPU this is cannot be read" if not name else f"there is no profile for {_described(name, cards)}"
    notes: tuple[str, ...] = ()
    if len(cards.cards) > 1:
        notes = (f"the first of {len(cards.cards)} graphics cards counts",)
    verdict = name if cards.cards else (profile.title if profile is not None else name or "unknown machine")
    if not cards.cards and cpu.name is not None:
        verdict = f"{verdict}, {cpu.name}"
    return Machine(
        kind="gpu" if cards.cards else "cpu",
        verdict=verdict,
        profile=None if profile is None else profile.name,
        reason=reason,
        jetson=None,
        cards=cards,
        cpu=cpu,
        software=software,
        notes=notes,
    )


def _described(name: str, cards: Cards) -> str:
    memory = cards.cards[0].memory_gib if cards.cards else None
    return name if memory is None else f"{name} with {memory:.0f} GB"
