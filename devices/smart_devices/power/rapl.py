"""RAPL: the energy counters of x86 processors, in the kernel's powercap files.

``/sys/class/powercap/intel-rapl:N`` (AMD's have that name too, from Linux 5.8) are packages, and on some machines
``psys``, the whole platform, which holds the packages; their children are parts of a package. Only packages are added
up. Since CVE-2020-8694 ``energy_uj`` is for root only.
"""

from __future__ import annotations

from pathlib import Path

from smart_devices.errors import SensorError
from smart_devices.power.meters import Counter, CounterMeter, NoPower, PowerSource
from smart_devices.sysfs import read_number, read_number_or_none, read_text_or_none

_PERIOD_S = 10.0  # a counter of 65.5 kJ (AMD EPYC 7543) wraps every 4 minutes at 270 W
_LEAST_RANGE_UJ = 10**9  # a 65th of the least that was seen: what tells of less tells nothing
_SETTLE_S = 0.1  # the counter itself moves every millisecond or so


def find_rapl(root: Path) -> PowerSource | NoPower:
    """Return the counters of all processor packages below ``root``."""
    domains = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    packages = [domain for domain in domains if (read_text_or_none(domain / "name") or "").startswith("package-")]
    if not packages:
        return NoPower(reason="no energy counter of the processor (RAPL)")
    try:
        for package in packages:
            _energy_uj(package)
    except PermissionError:
        return NoPower(reason="the processor's energy counter (RAPL) is for root only: run as root")
    except (OSError, ValueError) as error:
        return NoPower(reason=f"the processor's energy counter (RAPL) gives no number ({error})")
    counters = [_counter(package) for package in packages]
    count = f"{len(packages)} processor packages" if len(packages) > 1 else "processor package"
    return PowerSource(
        name="rapl",
        measures=f"{count}, without memory and the rest of the machine",
        period_s=min(_PERIOD_S, *(counter.safe_s / 2 for counter in counters)),
        settle_s=_SETTLE_S,
        new_meter=lambda: CounterMeter(counters),
    )


def _counter(package: Path) -> Counter:
    def read() -> int:
        try:
            return _energy_uj(package)
        except (OSError, ValueError) as error:
            raise SensorError(f"the processor's energy counter (RAPL) gave no number ({error})") from error

    wraps_after = read_number_or_none(package / "max_energy_range_uj")
    if wraps_after is not None and wraps_after < _LEAST_RANGE_UJ:
        wraps_after = None
    return Counter(read=read, joules_per_count=1e-6, wraps_after=wraps_after)


def _energy_uj(package: Path) -> int:
    value = read_number(package / "energy_uj")
    if value < 0:
        raise ValueError(f"got {value}")
    return value
