from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.trees import (
    AGX_ORIN,
    AGX_ORIN_W,
    ORIN_NANO,
    ORIN_NANO_W,
    PC,
    THOR,
    THOR_RAILS_W,
    THOR_W,
    plant,
)
from smart_devices.errors import SensorError
from smart_devices.nvml import Gpu, open_gpu
from smart_devices.power import NoPower, PowerSampler, PowerSource, find_power
from smart_devices.power.meters import Counter, CounterMeter, PowerMeter

NEVER = 3600.0  # a period in which the thread does nothing: the test reads by hand
RANGE_UJ = 262143328850


def no_gpu() -> Gpu | str:
    return "no graphics card"


def clock_of(times: Sequence[float]) -> Callable[[], float]:
    left: Iterator[float] = iter(times)
    return lambda: next(left)


def measured(source: PowerSource | NoPower, times: Sequence[float], *, between: Callable[[int], None]) -> PowerSampler:
    """A sampler that read at ``times``; ``between`` is called with 1, 2, ... before each reading but the first."""
    with PowerSampler(source, period_s=NEVER, clock=clock_of(times)) as power:
        for i in range(1, len(times) - 1):
            between(i)
            power.sample()
        between(len(times) - 1)
    return power


def found(root: Path) -> PowerSource:
    source = find_power(root=root, gpu=no_gpu)
    assert isinstance(source, PowerSource), source
    return source


READINGS = st.lists(
    st.tuples(st.floats(1e-3, 10), st.floats(-1, 500)), min_size=2, max_size=20
)  # time since the last reading, watts
MOST_STEP = 10**9  # of a counter in a second: 1 kJ


@given(READINGS)
def test_a_power_is_integrated_as_numpy_does(readings: list[tuple[float, float]]) -> None:
    times, watts = np.cumsum([gap for gap, _ in readings]), [value for _, value in readings]
    left = iter(watts)
    meter = PowerMeter(lambda: next(left))
    for at in times:
        meter.read(float(at))
    joules = float(np.trapezoid(watts, times))
    if joules > 1e-9:
        assert meter.joules == pytest.approx(joules, abs=1e-9)
    elif joules < -1e-9:
        with pytest.raises(SensorError, match="not above 0"):
            _ = meter.joules


@pytest.mark.parametrize("watts", [2e4, -2e4, float("inf"), float("nan")])
def test_a_power_that_cannot_be_is_no_reading(watts: float) -> None:
    with pytest.raises(SensorError, match="which cannot be"):
        PowerMeter(lambda: watts).read(0.0)


@given(
    st.integers(RANGE_UJ - 5 * MOST_STEP, RANGE_UJ - 1), st.lists(st.integers(0, MOST_STEP), min_size=1, max_size=10)
)
def test_a_counter_that_wraps(start: int, steps: list[int]) -> None:
    counts = [start, *((start + int(total)) % RANGE_UJ for total in np.cumsum(steps))]
    left = iter(counts)
    meter = CounterMeter([Counter(read=lambda: next(left), joules_per_count=1e-6, wraps_after=RANGE_UJ)])
    for second in range(len(counts)):
        meter.read(float(second))
    if sum(steps):
        assert meter.joules == pytest.approx(sum(steps) * 1e-6)


def test_a_counter_that_may_have_wrapped_twice_says_nothing() -> None:
    meter = CounterMeter([Counter(read=lambda: 5, joules_per_count=1e-6, wraps_after=65532610987)])
    meter.read(0.0)
    meter.read(60.0)
    with pytest.raises(SensorError, match="too seldom"):
        meter.read(126.0)  # 65.5 kJ are 66 s at 1 kW


def test_a_counter_that_was_set_back_is_not_taken_for_one_that_wrapped() -> None:
    """From the middle of its range to 0 in a second would be 130 kW."""
    left = iter([RANGE_UJ // 2, 7])
    meter = CounterMeter([Counter(read=lambda: next(left), joules_per_count=1e-6, wraps_after=RANGE_UJ)])
    meter.read(0.0)
    with pytest.raises(SensorError, match="went back"):
        meter.read(1.0)


def test_one_counter_that_stands_still_makes_the_sum_unknown() -> None:
    left = iter([5, 10**6])
    meter = CounterMeter(
        [Counter(read=lambda: 5, joules_per_count=1e-6), Counter(read=lambda: next(left), joules_per_count=1e-6)]
    )
    meter.read(0.0)
    meter.read(1.0)
    with pytest.raises(SensorError, match="does not move"):
        _ = meter.joules


@pytest.mark.parametrize("wraps_after", [None, 50])
def test_a_counter_that_goes_back_without_a_wrap(wraps_after: int | None) -> None:
    left = iter([100, 90])
    meter = CounterMeter([Counter(read=lambda: next(left), joules_per_count=1.0, wraps_after=wraps_after)])
    meter.read(0.0)
    with pytest.raises(SensorError, match="went back"):
        meter.read(0.01)


@pytest.mark.parametrize(
    ("files", "name", "measures", "watts"),
    [
        (AGX_ORIN, "ina3221", "sum of rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0, not input power", AGX_ORIN_W),
        (ORIN_NANO, "ina3221", "module input (VDD_IN)", ORIN_NANO_W),
        (THOR, "ina238", "module and carrier input (VIN)", THOR_W),
        (
            {name: text for name, text in THOR.items() if "hwmon4" not in name},
            "ina3221",
            "sum of rails VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0, not input power",
            THOR_RAILS_W,  # with a negative current
        ),
        (
            {name.replace("/label", "/in1_label"): text for name, text in THOR.items()},
            "ina238",
            "module and carrier input (VIN)",
            THOR_W,
        ),
        (
            {name.replace("hwmon1", "hwmon7"): text for name, text in ORIN_NANO.items()},
            "ina3221",
            "module input (VDD_IN)",
            ORIN_NANO_W,
        ),
    ],
    ids=["AGX Orin", "Orin Nano", "Thor", "Thor, rails", "Thor, in1_label", "another hwmon number"],
)
def test_a_board_of_constant_power(
    tmp_path: Path, files: dict[str, str], name: str, measures: str, watts: float
) -> None:
    source = found(plant(tmp_path, files))
    power = measured(source, [10.0, 11.0, 14.0], between=lambda _: None)
    assert (source.name, source.measures, power.source) == (name, measures, name)
    assert power.joules == pytest.approx(4.0 * watts)
    assert power.mean_watts == pytest.approx(watts)
    assert (power.samples, power.seconds, power.unknown) == (3, 4.0, None)


def test_the_averaging_time_is_the_chips_own(tmp_path: Path) -> None:
    assert found(plant(tmp_path, AGX_ORIN)).settle_s == 0.43


@pytest.mark.parametrize("part", ["cpu", "gpu"])
def test_a_jetson_is_measured_whole_whatever_runs_the_network(tmp_path: Path, part: Any) -> None:
    source = find_power(part=part, root=plant(tmp_path, ORIN_NANO), gpu=no_gpu)
    assert isinstance(source, PowerSource)
    assert source.name == "ina3221"


def test_rails_that_nobody_knows_are_not_added_up(tmp_path: Path) -> None:
    files = {name: text.replace("VDD_IN", "VDD_MYSTERY") for name, text in ORIN_NANO.items()}
    source = find_power(root=plant(tmp_path, files), gpu=no_gpu)
    assert source == NoPower(
        reason="power rails of an unknown board (VDD_CPU_GPU_CV, VDD_MYSTERY), and no energy counter of the processor "
        "(RAPL)"
    )


def test_a_board_whose_sensor_vanishes_is_unknown(tmp_path: Path) -> None:
    source = found(plant(tmp_path, ORIN_NANO))

    def unplug(i: int) -> None:
        if i == 2:
            (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()

    power = measured(source, [0.0, 1.0, 2.0, 3.0], between=unplug)
    assert (power.joules, power.mean_watts) == (None, None)
    assert power.unknown is not None
    assert "curr1_input of the power sensor gave no number" in power.unknown


ABSURD = ["9" * 400, "9" * 4400, "-9" + "9" * 30, "1_856", "\u0661\u0662", "0x10", "", "nan", "\x1b[2J"]


@pytest.mark.parametrize("text", ABSURD)
@pytest.mark.parametrize("name", ["curr1_input", "in1_input"])
def test_what_is_no_number_of_the_kernels_makes_the_energy_unknown(tmp_path: Path, name: str, text: str) -> None:
    source = found(plant(tmp_path, ORIN_NANO | {f"sys/class/hwmon/hwmon1/{name}": text}))
    power = measured(source, [0.0, 1.0], between=lambda _: None)
    assert power.joules is None
    assert power.unknown is not None
    assert f"{name} of the power sensor gave no number" in power.unknown
    assert power.unknown.isprintable()
    assert len(power.unknown) < 300


@pytest.mark.parametrize("current", ["0", "-1856"])
def test_a_board_that_seems_to_draw_nothing_is_unknown(tmp_path: Path, current: str) -> None:
    source = found(plant(tmp_path, ORIN_NANO | {"sys/class/hwmon/hwmon1/curr1_input": current}))
    power = measured(source, [0.0, 1.0], between=lambda _: None)
    assert (power.joules, power.mean_watts, power.unknown) == (None, None, "its power is not above 0")


@pytest.mark.parametrize("text", ["-430", "0", "999999999", *ABSURD])
def test_an_averaging_time_that_cannot_be_is_not_waited_for(tmp_path: Path, text: str) -> None:
    assert found(plant(tmp_path, ORIN_NANO | {"sys/class/hwmon/hwmon1/update_interval": text})).settle_s == 0.5


@pytest.mark.parametrize("text", ["-5", "0", "1", *ABSURD])
def test_a_counters_range_that_cannot_be_sets_no_pace(tmp_path: Path, text: str) -> None:
    """Read as it stands, it would keep a core busy beside the work that is measured."""
    source = found(plant(tmp_path, PC | {"sys/class/powercap/intel-rapl:0/max_energy_range_uj": text}))
    assert source.period_s == 10.0
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"

    def count(_: int) -> None:
        counter.write_text("52650883221\n")

    power = measured(source, [0.0, 1.0], between=count)
    assert power.joules == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["-5", *ABSURD])
def test_a_processors_counter_without_a_number(tmp_path: Path, text: str) -> None:
    root = plant(tmp_path, PC | {"sys/class/powercap/intel-rapl:0/energy_uj": text})
    source = find_power(root=root, gpu=no_gpu)
    assert isinstance(source, NoPower)
    assert "(RAPL) gives no number" in source.reason
    assert source.reason.isprintable()


def test_a_sensor_that_failed_is_left_alone() -> None:
    """The thread ends with it: it has nothing left to read."""
    tries, failed = iter([7.0]), threading.Event()

    def watts() -> float:
        for value in tries:
            return value
        failed.set()
        raise SensorError("it is gone")

    source = PowerSource(
        name="ina3221", measures="a test", period_s=1e-3, settle_s=0.0, new_meter=lambda: PowerMeter(watts)
    )
    with PowerSampler(source) as power:
        assert failed.wait(timeout=60)
        for thread in threading.enumerate():
            if thread.name == "smart-edge power":
                thread.join(timeout=60)
                assert not thread.is_alive()
    assert (power.joules, power.unknown) == (None, "it is gone")


def test_a_sensor_that_comes_back_does_not_hide_the_gap(tmp_path: Path) -> None:
    source = found(plant(tmp_path, ORIN_NANO))
    current = tmp_path / "sys/class/hwmon/hwmon1/curr1_input"

    def disturb(i: int) -> None:
        current.write_text("no number\n" if i == 1 else "1856\n")

    assert measured(source, [0.0, 1.0, 2.0, 3.0], between=disturb).joules is None


@pytest.mark.parametrize("failure", [BlockingIOError(errno.EAGAIN, "try again"), TypeError("can't concat NoneType")])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_gated_sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, *, lasting: bool) -> None:
    """Once is a chip that was busy; twice in a row is one that does not answer."""
    source = found(plant(tmp_path, ORIN_NANO))
    read, left = os.read, iter([failure] * (2 if lasting else 1))

    def failing(descriptor: int, count: int) -> bytes:
        for error in left:
            raise error
        return read(descriptor, count)

    monkeypatch.setattr(os, "read", failing)
    power = measured(source, [0.0, 1.0], between=lambda _: None)
    assert (power.joules is None) is lasting


def test_the_processor_packages_are_added_up_and_nothing_else(tmp_path: Path) -> None:
    second = {name.replace("intel-rapl:0/", "intel-rapl:2/"): text for name, text in PC.items() if ":0/" in name}
    second["sys/class/powercap/intel-rapl:2/name"] = "package-1\n"
    source = found(plant(tmp_path, PC | second))
    counters = [tmp_path / f"sys/class/powercap/intel-rapl:{i}/energy_uj" for i in (0, 2)]
    powercap = tmp_path / "sys/class/powercap"

    def count(i: int) -> None:
        counters[0].write_text(f"{RANGE_UJ - 1_000_000 if i == 1 else 2_000_000}\n")  # wraps on the way
        counters[1].write_text(f"{52649883221 + 500_000 * i}\n")
        for other in ("intel-rapl:1", "intel-rapl:0:0"):
            (powercap / other / "energy_uj").write_text(f"{10**9 * i}\n")

    power = measured(source, [0.0, 1.0, 2.0], between=count)
    assert power.joules == pytest.approx((RANGE_UJ - 52649883221 + 2_000_000 + 1_000_000) * 1e-6)
    assert source.measures == "2 processor packages, without memory and the rest of the machine"


def test_a_counter_that_stands_still_is_no_measurement(tmp_path: Path) -> None:
    power = measured(found(plant(tmp_path, PC)), [0.0, 1.0], between=lambda _: None)
    assert power.joules is None
    assert power.unknown == "its counter does not move, as in virtual machines"


def test_a_counter_for_root_only_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, PC)
    opened = os.open

    def refusing(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("energy_uj"):
            raise PermissionError(errno.EACCES, "Permission denied")  # tests may run as root, whom no mode stops
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    source = find_power(root=tmp_path, gpu=no_gpu)
    assert isinstance(source, NoPower)
    assert "for root only: run as root" in source.reason


@pytest.mark.parametrize(("seconds", "known"), [(0.42, False), (0.44, True)])
def test_work_that_is_over_before_the_sensor_shows_it_is_unknown(
    tmp_path: Path, seconds: float, *, known: bool
) -> None:
    power = measured(found(plant(tmp_path, AGX_ORIN)), [1.0, 1.0 + seconds], between=lambda _: None)
    assert (power.joules is not None) is known
    said = None if known else "the work took 0.42 s, and the sensor averages over 0.43 s"
    assert power.unknown == said


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    with PowerSampler.open(root=tmp_path) as power:
        pass
    assert (power.joules, power.mean_watts, power.source, power.samples) == (None, None, None, 0)
    assert power.unknown == "no INA3221 or INA238 power sensor, and no energy counter of the processor (RAPL)"


def test_the_work_comes_first_even_when_it_fails(tmp_path: Path) -> None:
    source = found(plant(tmp_path, ORIN_NANO))
    with pytest.raises(ZeroDivisionError), PowerSampler(source, period_s=NEVER, clock=clock_of([0.0, 2.0])) as power:
        _ = 1 / 0
    assert power.joules == pytest.approx(2.0 * ORIN_NANO_W)


def test_a_thread_reads_while_the_work_goes_on() -> None:
    enough, left = threading.Event(), iter(range(1, 10**9))

    def watts() -> float:
        if next(left) == 5:
            enough.set()
        return 7.0

    source = PowerSource(
        name="ina3221", measures="a test", period_s=1e-3, settle_s=0.0, new_meter=lambda: PowerMeter(watts)
    )
    sampler = PowerSampler(source)
    with sampler as power:
        assert enough.wait(timeout=60)
    assert power.samples >= 6
    assert power.mean_watts == pytest.approx(7.0)
    with sampler:  # a second time, from nothing
        pass
    assert 2 <= sampler.samples < 6 or sampler.mean_watts == pytest.approx(7.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "smart-edge power"]


def fake_nvml(**answers: object) -> Callable[[str], ModuleType]:
    """The module ``pynvml`` with these functions; an answer that is an exception is raised."""
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    module.NVMLError = NVMLError  # type: ignore[attr-defined]
    defaults: dict[str, object] = {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetName": b"NVIDIA GeForce RTX 4090",  # old versions give bytes
    }
    for name, answer in (defaults | answers).items():

        def function(*arguments: object, answer: object = answer) -> object:
            if answer == "not supported":
                raise NVMLError(answer)
            return next(answer) if isinstance(answer, Iterator) else answer

        setattr(module, name, function)
    return lambda name: {"pynvml": module}[name]


def test_a_card_that_counts_energy() -> None:
    load = fake_nvml(nvmlDeviceGetTotalEnergyConsumption=iter([1, 1_000, 1_500, 4_000]), nvmlDeviceGetPowerUsage=9)
    source = find_power(part="gpu", root=Path("/nowhere"), gpu=lambda: open_gpu(load=load))
    assert isinstance(source, PowerSource)
    power = measured(source, [0.0, 1.0, 2.0], between=lambda _: None)
    assert (source.name, source.measures) == ("nvml", "graphics card (NVIDIA GeForce RTX 4090), without the host")
    assert power.joules == pytest.approx(3.0)


def test_a_card_that_tells_its_power_only() -> None:
    load = fake_nvml(
        nvmlDeviceGetTotalEnergyConsumption="not supported", nvmlDeviceGetPowerUsage=iter([0, 100_000, 300_000])
    )
    source = find_power(part="gpu", root=Path("/nowhere"), gpu=lambda: open_gpu(load=load))
    assert isinstance(source, PowerSource)
    assert measured(source, [0.0, 2.0], between=lambda _: None).joules == pytest.approx(400.0)


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (fake_nvml(nvmlInit="not supported"), "no NVIDIA graphics card that answers (NVML: not supported)"),
        (fake_nvml(), "NVIDIA GeForce RTX 4090 does not tell its power (NVML)"),
    ],
    ids=["no driver", "a Jetson's library"],
)
def test_a_card_that_tells_nothing(load: Callable[[str], ModuleType], reason: str) -> None:
    source = find_power(part="gpu", root=Path("/nowhere"), gpu=lambda: open_gpu(load=load))
    assert source == NoPower(reason=f"no INA3221 or INA238 power sensor, and {reason}")


@pytest.mark.parametrize(
    ("error", "tries"),
    [(None, 1), (pynvml.NVMLError_LibraryNotFound, 1), (pynvml.NVMLError_DriverNotLoaded, 3)],
)
def test_the_library_is_initialised_again_only_where_that_may_help(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None, tries: int
) -> None:
    """Each time it takes a lock that an interrupt could leave locked."""
    tried = 0

    def initialise() -> None:
        nonlocal tried
        tried += 1
        if error is not None:
            raise error

    library = fake_nvml()("pynvml")
    monkeypatch.setattr(library, "nvmlInit", initialise)
    monkeypatch.setattr(library, "NVMLError", pynvml.NVMLError)
    found = [open_gpu(load=lambda _: library) for _ in range(3)]
    assert tried == tries
    if error is None:
        assert all(isinstance(one, Gpu) for one in found)
    else:
        assert found == [f"no NVIDIA graphics card that answers (NVML: {error()})"] * 3


def test_without_the_library_the_remedy_is_named() -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    assert open_gpu(load=missing) == "no nvidia-ml-py to ask a graphics card with: pip install 'smart-edge[nvml]'"


def test_a_card_says_nothing_of_the_processor(tmp_path: Path) -> None:
    def never() -> Gpu | str:
        raise AssertionError

    assert isinstance(find_power(part="cpu", root=tmp_path, gpu=never), NoPower)


def test_a_part_that_no_machine_has() -> None:
    with pytest.raises(ValueError, match="expected one of cpu, gpu, got 'tpu'"):
        find_power(part="tpu")  # type: ignore[arg-type]


def test_this_machines_own_card_or_why_there_is_none() -> None:
    found = open_gpu()
    assert isinstance(found, Gpu) or found
