"""A Jetson's power sensors: INA3221 and INA238 chips, in the kernel's hwmon files.

An INA3221 has up to three rails: ``inK_label``, ``inK_input`` in mV and ``currK_input`` in mA, K from 1 to 3 (4 to 6
are shunt voltages, 7 is their sum; kernel, Documentation/hwmon/ina3221.rst). An INA238 gives ``power1_input`` in uW.
Which rails make up the total differs from board to board: rbonghi/jetson_stats and recorded boards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smart_devices.errors import SensorError
from smart_devices.power.meters import NoPower, PowerMeter, PowerSource, SourceName
from smart_devices.sysfs import printable, read_number, read_number_or_none, read_text_or_none

_PERIOD_S = 0.1
_UPDATE_MS = 500  # where the chip does not say; Jetson Linux sets 430 ms (512 samples each)
_MOST_UPDATE_MS = 60_000  # an INA3221 takes 51 s at most: 1024 samples of 2 x 8.244 ms for each of 3 rails
_UNCONNECTED = "NC"

_TOTALS = (
    (("VIN",), "module and carrier input (VIN)"),  # AGX Thor, upstream of its other rails
    (("VDD_IN",), "module input (VDD_IN)"),  # Orin NX, Orin Nano, Xavier NX
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), None),  # AGX Orin: that VIN_SYS_5V0 holds the DRAM's rail is unknown
    (("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), None),  # AGX Thor where VIN has no sensor
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), None),  # AGX Xavier
)
"""The rails whose sum is the nearest to a board's total, the best first, and what to call it; None is a sum."""


@dataclass(frozen=True, kw_only=True)
class _Rail:
    label: str
    chip: SourceName
    update_ms: int
    watts: Callable[[], float]


def find_hwmon(root: Path) -> PowerSource | NoPower:
    """Return the sensors of the board's total power below ``root``."""
    rails = list(_rails(root / "sys/class/hwmon"))
    if not rails:
        return NoPower(reason="no INA3221 or INA238 power sensor")
    labels = [rail.label for rail in rails]
    for wanted, words in _TOTALS:
        if all(labels.count(label) == 1 for label in wanted):
            measures = words or f"sum of rails {' + '.join(wanted)}, not input power"
            return _sum([rail for rail in rails if rail.label in wanted], measures=measures)
    return NoPower(reason=f"power rails of an unknown board ({printable(', '.join(sorted(labels)))})")


def _sum(rails: Sequence[_Rail], *, measures: str) -> PowerSource:
    return PowerSource(
        name=rails[0].chip,
        measures=measures,
        period_s=_PERIOD_S,
        settle_s=max(rail.update_ms for rail in rails) / 1000,
        new_meter=lambda: PowerMeter(lambda: sum(rail.watts() for rail in rails)),
    )


def _rails(folder: Path) -> Iterator[_Rail]:
    """Yield the connected rails of every chip; the number in ``hwmonN`` changes between boots and means nothing."""
    for chip in sorted(folder.glob("hwmon*")):
        update_ms = read_number_or_none(chip / "update_interval") or _UPDATE_MS
        if not 0 < update_ms <= _MOST_UPDATE_MS:
            update_ms = _UPDATE_MS
        match read_text_or_none(chip / "name"):
            case "ina3221":
                for k in (1, 2, 3):
                    label = read_text_or_none(chip / f"in{k}_label")
                    if label is not None and label != _UNCONNECTED:
                        yield _Rail(label=label, chip="ina3221", update_ms=update_ms, watts=_product(chip, k))
            case "ina238":
                label = read_text_or_none(chip / "in1_label") or read_text_or_none(chip / "label")
                if label is not None:
                    yield _Rail(label=label, chip="ina238", update_ms=update_ms, watts=_power(chip))
            case _:
                pass


def _product(chip: Path, k: int) -> Callable[[], float]:
    voltage, current = chip / f"in{k}_input", chip / f"curr{k}_input"
    return lambda: _number(voltage) * _number(current) / 1e6  # mV times mA; a current may be negative when idle


def _power(chip: Path) -> Callable[[], float]:
    return lambda: _number(chip / "power1_input") / 1e6


def _number(path: Path) -> int:
    try:
        return read_number(path)
    except (OSError, ValueError) as error:
        raise SensorError(f"{path.name} of the power sensor gave no number ({error})") from error
