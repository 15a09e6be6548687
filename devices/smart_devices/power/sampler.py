"""How much energy a stretch of work takes, by the sensor that says it best."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from smart_devices.errors import SensorError
from smart_devices.nvml import Gpu, open_gpu
from smart_devices.power.card import find_nvml
from smart_devices.power.hwmon import find_hwmon
from smart_devices.power.meters import Meter, NoPower, Part, PowerSource
from smart_devices.power.rapl import find_rapl


def find_power(
    *, part: Part = "cpu", root: Path = Path("/"), gpu: Callable[[], Gpu | str] = open_gpu
) -> PowerSource | NoPower:
    """Return the sensor that measures what ``part`` draws: the whole board of a Jetson, else that part alone.

    A graphics card beside a processor that runs the network says nothing about it, and the other way round.

    Args:
        part: What runs the network.
        root: Where ``sys`` lies; another one in tests.
        gpu: Opens the graphics card.

    Raises:
        ValueError: ``part`` is neither.
    """
    if part not in get_args(Part):
        raise ValueError(f"expected one of {', '.join(get_args(Part))}, got {part!r}")
    board = find_hwmon(root)
    if isinstance(board, PowerSource):
        return board
    alone = find_nvml(gpu()) if part == "gpu" else find_rapl(root)
    return alone if isinstance(alone, PowerSource) else NoPower(reason=f"{board.reason}, and {alone.reason}")


class PowerSampler:
    """Measures the energy of what happens between entering and leaving it, as far as the machine tells.

    A thread reads the sensor meanwhile. Whatever goes wrong with the sensor never disturbs the work: the energy is then
    unknown (None) and `unknown` says why, as it is of work that is over before the sensor shows it
    (`PowerSource.settle_s`). The figures are there once it was left; entering again starts anew.

        with PowerSampler.open() as power:
            work()
        print(power.joules, power.mean_watts, power.source, power.unknown)

    Args:
        source: The sensor, from `find_power`.
        period_s: How often to read it; by default as its kind needs it.
        clock: Gives the time in seconds and never goes back.
    """

    def __init__(
        self,
        source: PowerSource | NoPower,
        *,
        period_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._period_s = period_s
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._meter: Meter | None = None
        self._first_s: float | None = None
        self._last_s = 0.0
        self._samples = 0
        self._joules: float | None = None
        self._unknown: str | None = source.reason if isinstance(source, NoPower) else "nothing was measured yet"

    @classmethod
    def open(cls, *, part: Part = "cpu", root: Path = Path("/")) -> PowerSampler:
        """Return a sampler of the best sensor that `find_power` finds."""
        return cls(find_power(part=part, root=root))

    @property
    def source(self) -> str | None:
        """What kind of sensor is read, None without one."""
        return self._source.name if isinstance(self._source, PowerSource) else None

    @property
    def samples(self) -> int:
        """How often it was read."""
        return self._samples

    @property
    def seconds(self) -> float:
        """The time between the first and the last reading."""
        return 0.0 if self._first_s is None else self._last_s - self._first_s

    @property
    def joules(self) -> float | None:
        """The energy, None where it is unknown."""
        return self._joules

    @property
    def mean_watts(self) -> float | None:
        """The energy over the time, None where it is unknown."""
        return None if self._joules is None or self.seconds <= 0 else self._joules / self.seconds

    @property
    def unknown(self) -> str | None:
        """Why the energy is unknown, as part of a sentence; None where it is known."""
        return self._unknown

    def __enter__(self) -> PowerSampler:
        if isinstance(self._source, NoPower):
            return self
        self._meter, self._first_s, self._samples = self._source.new_meter(), None, 0
        self._joules, self._unknown = None, "the work is not over"
        self.sample()
        self._stop = threading.Event()
        period_s = self._source.period_s if self._period_s is None else self._period_s
        self._thread = threading.Thread(
            target=self._run, args=(self._stop, period_s), name="smart-edge power", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        self.sample()
        if self._meter is None:
            return
        try:
            self._joules, self._unknown = self._energy(self._meter), None
        except SensorError as failure:
            self._give_up(failure)

    def _energy(self, meter: Meter) -> float:
        joules, settle_s = meter.joules, 0.0 if isinstance(self._source, NoPower) else self._source.settle_s
        if self.seconds < settle_s:  # what it shows is then mostly what was before
            raise SensorError(f"the work took {self.seconds:.2g} s, and the sensor averages over {settle_s:.2g} s")
        return joules

    def sample(self) -> None:
        """Read the sensor now, beside the thread's own readings."""
        with self._lock:
            if self._meter is None:
                return
            at_s = self._clock()
            try:
                self._meter.read(at_s)
            except SensorError as failure:
                self._give_up(failure)
                return
            self._first_s = at_s if self._first_s is None else self._first_s
            self._last_s = at_s
            self._samples += 1

    def _run(self, stop: threading.Event, period_s: float) -> None:
        while self._meter is not None and not stop.wait(period_s):
            self.sample()

    def _give_up(self, failure: SensorError) -> None:
        self._meter = None
        self._unknown = str(failure)
