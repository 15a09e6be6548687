from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from devices.trees import ORIN_NANO, THOR, plant
from smart_devices.clocks import Clock, Throttling, read_clocks, read_throttling
from smart_devices.nvml import Gpu


def card(**answers: int) -> Gpu:
    module = ModuleType("pynvml")
    module.NVMLError = RuntimeError  # type: ignore[attr-defined]
    for name, value in answers.items():
        setattr(module, name, lambda *_, value=value: value)
    module.nvmlDeviceGetName = lambda _: "NVIDIA L4"  # type: ignore[attr-defined]
    return Gpu(module, "handle")


def test_a_jetsons_clocks(tmp_path: Path) -> None:
    gpu, cpu = read_clocks(root=plant(tmp_path, ORIN_NANO))
    assert gpu == Clock(
        part="gpu",
        name="17000000.gpu",
        current_mhz=(306.0, 306.0),
        min_mhz=306.0,
        max_mhz=1020.0,
        governor="nvhost_podgov",
    )
    assert cpu == Clock(
        part="cpu",
        name="policy0, policy4",
        current_mhz=(729.6, 1728.0),
        min_mhz=729.6,
        max_mhz=1728.0,
        governor="schedutil",
    )
    assert (str(gpu), str(cpu)) == ("gpu 306 MHz (306 to 1020)", "cpu 730 to 1728 MHz (730 to 1728)")
    assert not gpu.locked


def test_locked_clocks(tmp_path: Path) -> None:
    files = ORIN_NANO | {"sys/class/devfreq/17000000.gpu/min_freq": "1020000000\n"}
    gpu = read_clocks(root=plant(tmp_path, files))[0]
    assert gpu.locked
    assert str(gpu) == "gpu 306 MHz (locked)"


def test_a_gpu_that_is_switched_off_has_no_clock(tmp_path: Path) -> None:
    (gpu,) = read_clocks(root=plant(tmp_path, THOR))
    assert (gpu.current_mhz, gpu.max_mhz, str(gpu)) == (None, 1575.0, "gpu unknown (315 to 1575)")


@pytest.mark.parametrize("node", ["17000000.ga10b", "17000000.gv11b", "57000000.gpu"])
def test_the_gpus_of_other_releases(tmp_path: Path, node: str) -> None:
    files = {name.replace("17000000.gpu", node): text for name, text in ORIN_NANO.items()}
    assert read_clocks(root=plant(tmp_path, files))[0].name == node


@pytest.mark.parametrize("text", ["9" * 400, "-5", "1e9", "\x1b[2J"])
def test_what_is_no_clock_is_unknown(tmp_path: Path, text: str) -> None:
    (clock,) = read_clocks(root=plant(tmp_path, {"sys/class/devfreq/17000000.gpu/cur_freq": text}))
    assert (clock.current_mhz, str(clock)) == (None, "gpu unknown")


def test_policies_that_differ_stay_apart(tmp_path: Path) -> None:
    files = ORIN_NANO | {"sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "performance\n"}
    assert [clock.governor for clock in read_clocks(root=plant(tmp_path, files))[1:]] == ["schedutil", "performance"]


def test_a_virtual_machine_has_no_clocks(tmp_path: Path) -> None:
    assert read_clocks(root=tmp_path) == ()
    assert read_throttling(root=tmp_path) == Throttling(events={}, reasons=frozenset())


def test_a_graphics_cards_clock(tmp_path: Path) -> None:
    (clock,) = read_clocks(root=tmp_path, gpu=card(nvmlDeviceGetClockInfo=1500, nvmlDeviceGetMaxClockInfo=2040))
    assert (clock.name, clock.current_mhz, clock.max_mhz) == ("NVIDIA L4", (1500.0, 1500.0), 2040.0)


def test_over_current_between_two_readings(tmp_path: Path) -> None:
    root = plant(tmp_path, ORIN_NANO)
    before = read_throttling(root=root)
    assert before.since(before) == ()  # what happened earlier is no matter
    (root / "sys/class/hwmon/hwmon3/oc3_event_cnt").write_text("5\n")
    assert read_throttling(root=root).since(before) == ("instantaneous over-current",)


def test_a_throttle_alert_that_holds_now(tmp_path: Path) -> None:
    zone = "sys/class/thermal/cooling_device4"
    root = plant(tmp_path, {f"{zone}/type": "tj-throttle-alert\n", f"{zone}/cur_state": "1\n"})
    alert = read_throttling(root=root)
    (root / zone / "cur_state").write_text("0\n")
    assert read_throttling(root=root).since(alert) == ("tj-throttle-alert",)
    assert alert.since(alert) == ("tj-throttle-alert",)


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [(0x01, set()), (0x102, set()), (0x44, {"power cap", "temperature (hardware)"}), (0x80, {"power brake"})],
)
def test_why_a_card_is_slow(tmp_path: Path, bits: int, reasons: set[str]) -> None:
    for function in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        assert read_throttling(root=tmp_path, gpu=card(**{function: bits})).reasons == reasons
