"""How fast this machine's processors are clocked, and whether it holds them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smart_devices.nvml import Gpu
from smart_devices.power.meters import Part
from smart_devices.sysfs import read_number_or_none, read_text_or_none

# A Jetson's GPU in /sys/class/devfreq, by generation: rbonghi/jetson_stats, recorded boards.
_GPU_SUFFIXES = (".gpu", ".ga10b", ".gv11b", ".gp10b")
_GPU_NAMES = ("gpu-gpc-0",)  # AGX Thor

_OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}
"""What each of soctherm_oc's event counters counts, on Orin and Thor (kernel driver soctherm-oc-event)."""

# NVML_CLOCKS_EVENT_REASONS that hold a clock back; the others say that it is idle, or set so.
_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The clock of a GPU, or of processor cores that share a range.

    ``current_mhz`` is from the slowest to the fastest; it, ``min_mhz`` and ``max_mhz`` (what the clock may be now, not
    what the silicon can) are None where the system does not say, as for a GPU that is switched off.
    """

    part: Part
    name: str
    current_mhz: tuple[float, float] | None
    min_mhz: float | None
    max_mhz: float | None
    governor: str | None

    @property
    def locked(self) -> bool:
        """Whether the clock cannot move, as after ``jetson_clocks``."""
        return self.min_mhz is not None and self.min_mhz == self.max_mhz

    def __str__(self) -> str:
        """Return the clock for people: ``gpu 1020 MHz (306 to 1020)``."""
        now = "unknown"
        if self.current_mhz is not None:
            low, high = self.current_mhz
            now = f"{low:.0f} MHz" if round(low) == round(high) else f"{low:.0f} to {high:.0f} MHz"
        if self.locked:
            return f"{self.part} {now} (locked)"
        if self.min_mhz is None or self.max_mhz is None:
            return f"{self.part} {now}"
        return f"{self.part} {now} ({self.min_mhz:.0f} to {self.max_mhz:.0f})"


def read_clocks(*, root: Path = Path("/"), gpu: Gpu | None = None) -> tuple[Clock, ...]:
    """Return the clocks of the graphics card ``gpu`` and of what ``root`` tells of, GPUs first; none in most VMs."""
    card = () if gpu is None else (_card(gpu),)
    return (*card, *_gpus(root / "sys/class/devfreq"), *_cpus(root / "sys/devices/system/cpu/cpufreq"))


def _card(gpu: Gpu) -> Clock:
    now, most = gpu.sm_clock_mhz(), gpu.max_sm_clock_mhz()
    return Clock(
        part="gpu",
        name=gpu.name,
        current_mhz=(float(now), float(now)) if now else None,
        min_mhz=None,
        max_mhz=None if most is None else float(most),
        governor=None,
    )


def _gpus(devfreq: Path) -> Iterator[Clock]:
    for node in sorted(devfreq.glob("*")):
        if node.name.endswith(_GPU_SUFFIXES) or node.name in _GPU_NAMES:
            now = _mhz(node / "cur_freq", hertz=1)  # 0 while it is switched off
            yield Clock(
                part="gpu",
                name=node.name,
                current_mhz=(now, now) if now else None,
                min_mhz=_mhz(node / "min_freq", hertz=1),
                max_mhz=_mhz(node / "max_freq", hertz=1),
                governor=read_text_or_none(node / "governor"),
            )


def _cpus(cpufreq: Path) -> Iterator[Clock]:
    """Yield one clock for all policies of the same range and governor: a server has a policy for each of its cores."""
    found: dict[tuple[float | None, float | None, str | None], list[Path]] = {}
    for policy in sorted(cpufreq.glob("policy*")):
        low, high = (_mhz(policy / f"scaling_{end}_freq", hertz=1000) for end in ("min", "max"))
        found.setdefault((low, high, read_text_or_none(policy / "scaling_governor")), []).append(policy)
    for (low, high, governor), policies in found.items():
        now = [mhz for policy in policies if (mhz := _mhz(policy / "scaling_cur_freq", hertz=1000)) is not None]
        yield Clock(
            part="cpu",
            name=", ".join(policy.name for policy in policies) if len(policies) < 3 else f"{len(policies)} policies",
            current_mhz=(min(now), max(now)) if now else None,
            min_mhz=low,
            max_mhz=high,
            governor=governor,
        )


def _mhz(path: Path, *, hertz: int) -> float | None:
    value = read_number_or_none(path)
    return None if value is None or value < 0 else value * hertz / 1e6


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """What held the clocks back: events counted since the machine started, and reasons that hold now."""

    events: Mapping[str, int]
    reasons: frozenset[str]

    def since(self, before: Throttling) -> tuple[str, ...]:
        """Return, in words, what held clocks back between ``before`` and now."""
        more = [what for what, count in self.events.items() if count > before.events.get(what, count)]
        return (*more, *sorted((self.reasons | before.reasons) - set(more)))


def read_throttling(*, root: Path = Path("/"), gpu: Gpu | None = None) -> Throttling:
    """Return what there is below ``root`` and of the graphics card ``gpu``; nothing where the machine does not tell."""
    bits = (gpu.clock_event_reasons() or 0) if gpu is not None else 0
    reasons = {words for bit, words in _REASONS.items() if bits & bit}
    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        kind = read_text_or_none(device / "type") or ""
        if kind.endswith("-throttle-alert") and (read_number_or_none(device / "cur_state") or 0) > 0:
            reasons.add(kind)
    return Throttling(events=dict(_events(root)), reasons=frozenset(reasons))


def _events(root: Path) -> Iterator[tuple[str, int]]:
    for chip in (root / "sys/class/hwmon").glob("hwmon*"):
        if read_text_or_none(chip / "name") == "soctherm_oc":
            for counter, what in _OVER_CURRENT.items():
                count = read_number_or_none(chip / f"{counter}_event_cnt")
                if count is not None:
                    yield what, count
