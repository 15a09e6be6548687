"""What `detect` makes of recorded machines, and of files in every state."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devices.boards import BOARDS, Board, Content, cuda, modes, packages, release
from smart_devices import JetPackVersion, load_profile, profile_names
from smart_devices.cpu import read_cpu
from smart_devices.detection import (
    Card,
    Cards,
    LiveMode,
    Machine,
    Software,
    detect,
    device_tree,
    nvpmodel,
    releases,
)
from smart_devices.detection.machine import read_cards
from smart_devices.nvml import open_gpus
from smart_devices.sysfs import Files

ORIN = "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0"


def look(board: Board, root: Path) -> Machine:
    return detect(board.write(root), run=board.run, cards=lambda: board.cards, architecture=board.architecture)


def jetson(root: Path, compatible: str | bytes = ORIN, files: Mapping[str, Content] | None = None) -> Machine:
    """What is made of a board with this device tree and these other files."""
    return look(Board(files={"/proc/device-tree/compatible": compatible, **(files or {})}), root)


NOTHING = Software(cuda=None, tensorrt=None, tensorrt_modules=(), python=None)


@dataclass(frozen=True)
class Expected:
    """What `detect` should say of a recorded Jetson."""

    verdict: str
    profile: str | None = None
    l4t: str | None = None
    jetpack: JetPackVersion | None = None
    power_mode: LiveMode | None = None
    software: Software = NOTHING


JETSONS = {
    "AGX Orin 64GB": Expected(
        verdict="NVIDIA Jetson AGX Orin 64GB (p3701-0005)",
        profile="jetson-agx-orin-64gb",
        l4t="36.4.7",
        jetpack=JetPackVersion("6.2.1", "dpkg"),
        power_mode=LiveMode("MAXN", "nvpmodel"),
        software=Software(None, "10.3.0.30", ("/usr/lib/python3.10/dist-packages/tensorrt",), "3.10"),
    ),
    "Orin Nano Super": Expected(
        verdict="NVIDIA Jetson Orin Nano 8GB (p3767-0005)",
        profile="jetson-orin-nano-8gb",
        l4t="36.4.3",
        jetpack=JetPackVersion("6.2", "table"),
        power_mode=LiveMode("MAXN_SUPER", "files"),
        software=Software(None, None, (), "3.10"),
    ),
    "Orin Nano Super, JetPack 7": Expected(
        verdict="NVIDIA Jetson Orin Nano 8GB (p3767-0005)",
        profile="jetson-orin-nano-8gb",
        l4t="39.2.1",
        jetpack=JetPackVersion("7.2.1", "dpkg"),
        power_mode=LiveMode("25W", "nvpmodel"),
        software=Software("13.2.2", "10.16.2.10", (), "3.12"),
    ),
    "Orin NX 16GB": Expected(
        verdict="NVIDIA Jetson Orin NX 16GB (p3767-0000)",
        profile="jetson-orin-nx-16gb",
        l4t="36.3.0",
        jetpack=JetPackVersion("6.0", "table"),
        power_mode=None,  # its table names a default, which is that of boot and not the live one
        software=Software("12.2.140", "8.6.2.3", (), None),
    ),
    "Xavier NX": Expected(
        verdict="NVIDIA Jetson Xavier NX 8GB (p3668-0001)",
        profile="jetson-xavier-nx",
        l4t="35.4.1",
        jetpack=JetPackVersion("5.1.2", "table"),
        power_mode=LiveMode("MODE_20W_6CORE", "files"),
        software=Software("11.4.315", "8.5.2.2", ("/usr/lib/python3.8/dist-packages/tensorrt",), "3.8"),
    ),
    "AGX Thor": Expected(
        verdict="NVIDIA Jetson AGX Thor (T5000) (p3834-0008)",
        profile="jetson-agx-thor",
        l4t="38.4.0",
        jetpack=JetPackVersion("7.1", "table"),
        power_mode=LiveMode("120W", "nvpmodel"),
    ),
    "container on a Jetson": Expected(verdict="Jetson, module unknown (container)"),
}


@pytest.mark.parametrize("name", JETSONS)
def test_a_recorded_jetson(tmp_path: Path, name: str) -> None:
    expected, found = JETSONS[name], look(BOARDS[name], tmp_path)
    board = found.jetson
    assert board is not None
    assert found.kind == "jetson"
    assert expected == Expected(
        verdict=found.verdict,
        profile=found.profile,
        l4t=board.l4t,
        jetpack=board.jetpack,
        power_mode=board.power_mode,
        software=found.software,
    )
    assert (found.reason is None) == (found.profile is not None)
    assert (board.super_modes, board.container) == ("Super" in name, "container" in name)
    assert found.cards.cards == (), "a Jetson's GPU is no card, whatever NVML answers"
    if found.profile is not None:
        profile = load_profile(found.profile)
        assert all(board.soc in row.socs for row in profile.jetpack)
        assert board.power_mode is None or board.power_mode.name in {mode.name for mode in profile.power_modes}


def test_a_pc_with_a_card(tmp_path: Path) -> None:
    found = look(BOARDS["PC with a card"], tmp_path)
    assert (found.kind, found.profile, found.verdict) == ("gpu", "rtx-4090", "NVIDIA GeForce RTX 4090")
    assert (found.jetson, found.reason) == (None, None)
    assert found.cards.driver == "580.65.06"


def test_a_host_without_gpu(tmp_path: Path) -> None:
    found = look(BOARDS["host without GPU"], tmp_path)
    assert (found.kind, found.profile, found.verdict) == ("cpu", "x86-cpu", "x86-64 CPU, AMD EPYC")
    assert found.cpu.features == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert found.cpu.lacks == ("avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
    assert found.jetson is None


def test_an_xavier_says_that_it_is_for_export_only(tmp_path: Path) -> None:
    assert any("Python 3.10" in note for note in look(BOARDS["Xavier NX"], tmp_path).notes)


class TestIdentity:
    def test_a_raspberry_pi_is_no_jetson(self, tmp_path: Path) -> None:
        found = jetson(tmp_path, "raspberrypi,4-model-b\0brcm,bcm2711\0")
        assert (found.kind, found.profile, found.jetson) == ("cpu", "arm-cpu", None)

    def test_every_jetson_profile_is_found_by_its_modules(self, tmp_path: Path) -> None:
        for profile in map(load_profile, profile_names()):
            for part in profile.identity.names if profile.kind == "jetson" else ():
                found = jetson(tmp_path / part, f"nvidia,p0000-0000+{part}\0nvidia,tegra234\0")
                assert found.profile == profile.name
                product = device_tree.PRODUCTS[part]
                assert product in profile.title or any(product in note for note in found.notes) or "T5000" in product

    def test_the_super_suffix_is_a_flag_and_no_other_module(self, tmp_path: Path) -> None:
        found = jetson(tmp_path, "nvidia,p3768-0000+p3767-0001-super\0nvidia,p3767-0001\0nvidia,tegra234\0")
        assert found.profile == "jetson-orin-nx-8gb"
        assert found.jetson is not None
        assert found.jetson.super_modes

    def test_another_distribution_puts_its_own_name_first(self, tmp_path: Path) -> None:
        compatible = (
            "oe4t,p3768-0000+p3767-0005+tegrademo\0nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0"
            "nvidia,tegra234\0"
        )
        found = jetson(tmp_path, compatible)
        assert found.profile == "jetson-orin-nano-8gb"
        assert found.jetson is not None
        assert found.jetson.super_modes

    def test_the_model_text_decides_nothing(self, tmp_path: Path) -> None:
        compatible = "nvidia,p3768-0000+p3767-0003\0nvidia,p3767-0003\0nvidia,tegra234\0"
        model = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super\0"
        found = jetson(tmp_path, compatible, {"/proc/device-tree/model": model})
        assert found.profile == "jetson-orin-nano-8gb"
        assert found.jetson is not None
        assert found.jetson.model == model.rstrip("\0")
        assert not found.jetson.super_modes, "flashed without the Super configuration"

    @pytest.mark.parametrize(
        ("compatible", "verdict"),
        [
            ("nvidia,p3737-0000+p3701-0042\0nvidia,tegra234\0", "unknown Jetson (p3701-0042)"),
            ("nintendo,odin\0nvidia,tegra210\0", "unknown Jetson"),
            ("nvidia,p2972-0000\0nvidia,tegra194\0", "unknown Jetson"),  # a carrier: the module may be 16, 32 or 64 GB
            ("nvidia,p3737-0000+p3701-0008\0nvidia,tegra234\0", "NVIDIA Jetson AGX Orin Industrial (p3701-0008)"),
        ],
    )
    def test_what_has_no_profile_is_not_guessed(self, tmp_path: Path, compatible: str, verdict: str) -> None:
        found = jetson(tmp_path, compatible)
        assert (found.kind, found.profile, found.verdict) == ("jetson", None, verdict)
        assert found.reason

    def test_what_was_flashed_is_the_second_source(self, tmp_path: Path) -> None:
        found = jetson(
            tmp_path,
            "nvidia,p2972-0000\0nvidia,tegra194\0",
            {"/etc/nv_boot_control.conf": "TNSPEC 2888-400-0004-M.0-1-2-jetson-xavier-rqx580-\nTEGRA_CHIPID 0x19\n"},
        )
        assert found.profile == "jetson-agx-xavier"
        assert found.jetson is not None
        assert found.jetson.soc == "tegra194"

    def test_the_device_tree_counts_where_the_sources_differ(self, tmp_path: Path) -> None:
        found = jetson(
            tmp_path, files={"/etc/nv_boot_control.conf": "TNSPEC 3701-500-0000-J.0-1-1-jetson-agx-orin-devkit-\n"}
        )
        assert found.profile == "jetson-agx-orin-64gb"
        assert any("p3701-0005" in note and "p3701-0000" in note for note in found.notes)

    def test_a_mounted_disc_has_no_device_tree(self, tmp_path: Path) -> None:
        board = Board(
            files={
                "/etc/nv_boot_control.conf": "TNSPEC 3767-300-0000-H.2-1-0-recomputer-orin-j401-\n",
                "/etc/nv_tegra_release": release("36.4.4", "Mon Jun 16 16:07:13 UTC 2025"),
            }
        )
        found = look(board, tmp_path)
        assert found.profile == "jetson-orin-nx-16gb"
        assert found.jetson is not None
        assert not found.jetson.container

    def test_a_container_that_got_the_hosts_release_file(self, tmp_path: Path) -> None:
        host = {"/.dockerenv": "", "/etc/nv_tegra_release": release("36.4.3", "Wed Jan  8 01:49:37 UTC 2025")}
        board = BOARDS["container on a Jetson"]
        found = look(dataclasses.replace(board, files={**board.files, **host}), tmp_path)
        assert found.verdict == "Jetson, module unknown (container)"
        assert found.jetson is not None
        assert (found.jetson.l4t, found.profile) == ("36.4.3", None)

    def test_an_image_made_for_jetsons_makes_none_of_another_machine(self, tmp_path: Path) -> None:
        image = {"/.dockerenv": "", "/etc/nv_tegra_release": release("36.4.3", "Wed Jan  8 01:49:37 UTC 2025")}
        server = {**image, "/proc/sys/kernel/osrelease": "6.8.0-1021-aws\n"}
        assert look(Board(files=server), tmp_path / "arm").profile == "arm-cpu"
        root_of_a_board = {"/etc/nv_boot_control.conf": "TNSPEC 3701-500-0005-A.0-1-0-jetson-agx-orin-devkit-\n"}
        assert look(Board(files=root_of_a_board, architecture="x86_64"), tmp_path / "pc").profile == "x86-cpu"

    def test_a_container_on_a_pc_is_a_pc(self, tmp_path: Path) -> None:
        assert look(Board(files={"/.dockerenv": ""}, architecture="x86_64"), tmp_path).profile == "x86-cpu"

    @pytest.mark.parametrize(
        ("architecture", "profile"), [("arm64", "arm-cpu"), ("AMD64", "x86-cpu"), ("riscv64", None)]
    )
    def test_a_cpu_is_known_by_its_architecture(self, tmp_path: Path, architecture: str, profile: str | None) -> None:
        found = look(Board(architecture=architecture), tmp_path)
        assert (found.kind, found.profile) == ("cpu", profile)
        assert (found.reason is None) == (profile is not None)

    def test_a_disc_without_anything_is_said_to_be_unknown(self, tmp_path: Path) -> None:
        found = detect(tmp_path)
        assert (found.verdict, found.profile) == ("unknown machine", None)
        assert found.reason


class TestCards:
    @pytest.mark.parametrize(
        ("name", "memory_gib", "profile"),
        [
            ("NVIDIA GeForce RTX 3060", 12.0, "rtx-3060"),
            ("NVIDIA GeForce RTX 3060", 8.0, None),
            ("NVIDIA GeForce RTX 3060 Ti", 8.0, None),
            ("Tesla T4", 15.0, "t4"),
            ("NVIDIA L4", 22.5, "l4"),
            ("NVIDIA L40S", 45.0, None),
            ("NVIDIA A100-SXM4-80GB", 80.0, "a100-80gb"),
            ("NVIDIA H100 80GB HBM3", 79.65, "h100-sxm"),
            ("NVIDIA GB10", None, None),
        ],
    )
    def test_a_card_is_known_by_name_and_memory(
        self, tmp_path: Path, name: str, memory_gib: float | None, profile: str | None
    ) -> None:
        cards = Cards(cards=(Card(name=name, compute_capability=None, memory_gib=memory_gib),))
        found = look(Board(cards=cards, architecture="x86_64"), tmp_path)
        assert (found.kind, found.profile, found.verdict) == ("gpu", profile, name)
        assert (found.reason is None) == (profile is not None)

    def test_the_first_of_several_cards_counts_and_that_is_said(self, tmp_path: Path) -> None:
        cards = Cards(cards=(Card("NVIDIA L4", "8.9", 22.5), Card("Tesla T4", "7.5", 15.0)))
        found = look(Board(cards=cards, architecture="x86_64"), tmp_path)
        assert found.profile == "l4"
        assert "2 graphics cards" in found.notes[0]

    def test_recorded_answers_of_the_library(self) -> None:
        names = [b"NVIDIA GeForce RTX 4090", "NVIDIA GB10"]
        cards = read_cards(open_all=lambda: open_gpus(load=lambda name: recorded_nvml(name, names=names)))
        assert cards.driver == "580.65.06"
        assert cards.cards == (
            Card(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory_gib=23.99),
            Card(name="NVIDIA GB10", compute_capability="8.9", memory_gib=None),
        )

    def test_a_driver_without_cards(self) -> None:
        cards = read_cards(open_all=lambda: open_gpus(load=lambda name: recorded_nvml(name, names=[])))
        assert cards == Cards(reason="no NVIDIA graphics card that the driver knows")

    @pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="needs a machine without NVIDIA driver")
    def test_the_real_library_says_that_there_is_no_driver(self) -> None:
        assert str(read_cards().reason).startswith("no NVIDIA graphics card that answers (NVML: ")


def recorded_nvml(module: str, *, names: list[Any]) -> ModuleType:
    """The library's functions with what a machine with these cards answers; one with GB10 shares its memory."""
    assert module == "pynvml"

    class NVMLError(Exception):
        pass

    def memory(handle: int) -> SimpleNamespace:
        if names[handle] == "NVIDIA GB10":
            raise NVMLError("Not Supported")
        return SimpleNamespace(total=24564 * 2**20)

    library = ModuleType(module)
    vars(library).update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"580.65.06",
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetName=lambda handle: names[handle],
        nvmlDeviceGetCudaComputeCapability=lambda _: (8, 9),
        nvmlDeviceGetMemoryInfo=memory,
    )
    return library


class TestReleases:
    @pytest.mark.parametrize(
        ("text", "l4t"),
        [
            (release("35.3.1", "Sun Mar 19 15:19:21 UTC 2023", board="t186ref"), "35.3.1"),
            (release("36.3.0", "Mon May  6 17:34:21 UTC 2024"), "36.3.0"),
            (release("38.2.0", "Fri Aug 22 00:55:42 UTC 2025"), "38.2.0"),
            (release("39.2.0", "Mon Jun  1 09:28:48 PM UTC 2026"), "39.2.0"),
            (release("39.2.1", "Fri Aug  7 05:54:22 AM UTC 2026") + "# KERNEL_VARIANT: oot\n", "39.2.1"),
            (release("32.7.4", "Tue Jan  3 19:57:35 UTC 2023", board="t210ref"), "32.7.4"),
            (release("36.10.12", "Wed Jan  1 00:00:00 UTC 2027"), "36.10.12"),
            ("# R36 (release)\n", None),
            ("", None),
            ("36.4.3\n", None),
        ],
    )
    def test_the_release_file(self, text: str, l4t: str | None) -> None:
        assert releases.parse_release(text) == l4t

    def test_without_release_file_the_core_package_says_it(self, tmp_path: Path) -> None:
        found = jetson(tmp_path, files={"/var/lib/dpkg/status": packages(nvidia_l4t_core="36.4.7-20250918154033")})
        assert found.jetson is not None
        assert (found.jetson.l4t, str(found.jetson.jetpack)) == ("36.4.7", "6.2.1")

    def test_an_unknown_patch_is_approximate(self, tmp_path: Path) -> None:
        found = jetson(tmp_path, files={"/etc/nv_tegra_release": release("36.4.9", "Wed Jan  1 00:00:00 UTC 2027")})
        assert found.jetson is not None
        assert str(found.jetson.jetpack) == "6.2.1 (approximate)"

    def test_an_unknown_release_is_said_to_be_unknown(self, tmp_path: Path) -> None:
        found = jetson(tmp_path, files={"/etc/nv_tegra_release": release("41.1.0", "Wed Jan  1 00:00:00 UTC 2028")})
        assert found.jetson is not None
        assert (found.jetson.l4t, found.jetson.jetpack) == ("41.1.0", None)
        assert any("41.1.0" in note for note in found.notes)

    def test_an_installed_jetpack_counts_more_than_the_table(self, tmp_path: Path) -> None:
        found = jetson(
            tmp_path,
            files={
                "/etc/nv_tegra_release": release("36.5.0", "Wed Jan  1 00:00:00 UTC 2026"),
                "/var/lib/dpkg/status": packages(nvidia_jetpack="6.2.3+b81"),
            },
        )
        assert found.jetson is not None
        assert str(found.jetson.jetpack) == "6.2.3"

    def test_a_package_that_was_removed_does_not_count(self) -> None:
        status = packages(nvidia_jetpack="5.1.2-b104").encode()
        assert releases.parse_packages(status) == {"nvidia-jetpack": "5.1.2-b104"}

    @pytest.mark.parametrize("text", ["", "{}", '{"cuda": []}', '{"cuda": {"version": 12}}', "[" * 100_000, "nul\0"])
    def test_a_strange_version_file_of_cuda_says_nothing(self, text: str) -> None:
        assert releases.parse_cuda(text) is None
        assert releases.parse_cuda(cuda("12.6.68")) == "12.6.68"


class TestPowerMode:
    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("NV Power Mode: MAXN\n0\n", "MAXN"),
            ("NV Power Mode[0]: 15W\n", "15W"),
            ("NVPM ERROR: Error opening file: Permission denied\nNV Power Mode: MODE_30W\n2\n", "MODE_30W"),
            ("NV Power Mode: NVPM - Type: WARN: not set\n", None),
            ("NVPM ERROR: failed to read PM config\n", None),
            ("", None),
        ],
    )
    def test_what_the_tool_prints(self, text: str, name: str | None) -> None:
        assert nvpmodel.parse_query(text) == name

    def test_numbers_mean_what_the_boards_own_table_says(self, tmp_path: Path) -> None:
        """Mode 0 of this image is the slowest, there is no MAXN, and a number is missing."""
        table = modes("7W", "15W", default=1) + "< POWER_MODEL ID=5 NAME=25W >\n"
        assert nvpmodel.parse_configuration(table) == {0: "7W", 1: "15W", 5: "25W"}
        for status, name in (("pmode:0000", "7W"), ("pmode:0005 fmode:quiet", "25W"), ("pmode:0009", None), ("", None)):
            root = tmp_path / (name or f"none{len(status)}")
            found = jetson(root, files={"/var/lib/nvpmodel/status": status, "/etc/nvpmodel.conf": table}).jetson
            assert found is not None
            assert (found.power_mode and (found.power_mode.name, found.power_mode.source)) == (name and (name, "files"))

    def test_the_tool_is_run_as_it_is_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        tool = tmp_path / "nvpmodel"
        tool.write_text("#!/bin/sh\nprintf 'NVPM ERROR: \\377\\nNV Power Mode: MAXN\\n0\\n'\nexit 3\n")
        tool.chmod(0o755)
        assert nvpmodel.live_mode(Files(tmp_path), nvpmodel.run_command) == LiveMode("MAXN", "nvpmodel")
        tool.write_text("no program")
        assert nvpmodel.run_command(["nvpmodel", "-q"]) is None
        tool.unlink()
        assert nvpmodel.run_command(["nvpmodel", "-q"]) is None


class TestFiles:
    def test_what_cannot_be_read_counts_as_absent(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to("loop")
        reader = Files(tmp_path)
        for path in ("/folder", "/none", "/loop", "/with\0nul", "/" + "x" * 5000):
            assert reader.read(path) is None, path
            assert reader.link("/none") is None
        assert not reader.read("/pipe"), "a pipe that nobody writes to must not be waited for"
        assert reader.names("/none") == ()

    def test_a_sensor_that_is_switched_off_counts_as_absent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "temp").write_text("52000\n")
        reader = Files(tmp_path)
        for error in (
            BlockingIOError(11, "Resource temporarily unavailable"),
            TypeError("can't concat NoneType to bytes"),
        ):

            def fail(*_: object, error: Exception = error) -> bytes:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(os, "read", fail)
                assert reader.read("/temp") is None
        assert reader.text("/temp") == "52000"

    def test_reads_are_bounded(self, tmp_path: Path) -> None:
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(1 << 40)  # sparse
        assert len(Files(tmp_path).read("/huge") or b"") == 64 * 1024

    def test_links_of_a_mounted_disc_stay_on_it(self, tmp_path: Path) -> None:
        disc = tmp_path / "disc"
        (disc / "etc").mkdir(parents=True)
        (tmp_path / "secret").write_text("of this machine")
        (disc / "etc" / "up").symlink_to("../../../secret")
        (disc / "etc" / "absolute").symlink_to(tmp_path / "secret")
        (disc / "secret").write_text("of the disc")
        reader = Files(disc)
        assert reader.text("/etc/up") == "of the disc"
        assert reader.text("/etc/absolute") is None

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_forbidden_file_counts_as_absent(self, tmp_path: Path) -> None:
        (tmp_path / "energy_uj").write_text("1")
        (tmp_path / "energy_uj").chmod(0)
        assert Files(tmp_path).read("/energy_uj") is None


@given(st.binary(max_size=400))
@example(b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
@example(b"Package: nvidia-jetpack\nStatus: install ok installed\nVersion: \xff\n\nPackage:\n")
@example(b"# R999 (release), REVISION: 999.999")
@example(b"NV Power Mode: \xff")
def test_no_bytes_break_a_parser(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    module = device_tree.parse_compatible(data)
    assert module is None or module.part is None or len(module.part) == 10
    assert all(value for value in releases.parse_packages(data).values())
    for parse in (device_tree.parse_boot_control, releases.parse_release, releases.parse_cuda):
        assert parse(text) is None or parse(text)
    nvpmodel.parse_query(text)
    nvpmodel.parse_configuration(text)
    nvpmodel.parse_status(text)


# Pieces of the real files, joined at random, get further into the parsers than bytes alone.
_PIECES = st.sampled_from([
    "nvidia,p3737-0000+p3701-0005", "-super", "\0", "\n", "nvidia,tegra234", "oe4t,", "p3767-0000", ",", "+", " ",
    "# R36 (release), REVISION: 4.3,", "R", "Package: nvidia-jetpack", "Status: install ok installed", "Version: ",
    "6.2.1+b38", "TNSPEC 3767-300-0005-S.1-1-1-", "NV Power Mode: MAXN", "pmode:0002", "é", "\x7f", "\t", "\x1b[2J",
    "model name : ", "x" * 300, "< POWER_MODEL ID=0 NAME=MAXN >", "flags : avx2", '{"cuda": {"version": "12.6"}}',
])  # fmt: skip


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_no_machine_breaks_detection(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    paths = (
        *(
            "/proc/device-tree/compatible",
            "/proc/device-tree/model",
            "/etc/nv_boot_control.conf",
            "/etc/nv_tegra_release",
        ),
        *("/var/lib/dpkg/status", "/etc/nvpmodel.conf", "/var/lib/nvpmodel/status", "/usr/local/cuda/version.json"),
        "/proc/cpuinfo",
    )
    found = look(Board(files=dict.fromkeys(paths, text)), tmp_path_factory.mktemp("machine"))
    assert found.verdict
    assert found.verdict.isprintable()
    assert found.jetson is None or (found.jetson.model or "").isprintable()
    assert all(note.isprintable() for note in found.notes)
    assert (found.profile is None) == (found.reason is not None)
    assert found.profile is None or found.profile in profile_names()


def test_this_machine_as_users_see_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "smart_devices.cli", "detect"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert detect().verdict in done.stdout


@pytest.mark.parametrize("links", [1, 20, 39, 40, 41, 60])
def test_no_chain_of_links_leads_out_of_a_mounted_disc(tmp_path: Path, links: int) -> None:
    """The kernel gives up after 40 links of its own: what is handed to it must have none left."""
    outside, root = tmp_path / "outside", tmp_path / "disc"
    outside.write_text("pmode:0003 outside")
    root.mkdir()
    for i in range(links):
        (root / f"link{i}").symlink_to(f"/link{i + 1}" if i < links - 1 else outside)
    files = Files(root)
    assert files.read("/link0") is None
    assert not files.exists("/link0")


def test_names_in_files_are_kept_short(tmp_path: Path) -> None:
    packages = f"Package: nvidia-jetpack\nStatus: install ok installed\nVersion: {'1.' * 50_000}1\n"
    found = jetson(
        tmp_path,
        files={
            "/etc/nvpmodel.conf": f"< POWER_MODEL ID=0 NAME={'A' * 60_000} >",
            "/var/lib/nvpmodel/status": "pmode:0000",
            "/var/lib/dpkg/status": packages,
        },
    ).jetson
    assert found is not None
    assert found.power_mode is None
    assert found.jetpack == JetPackVersion(version="1.1.1.1.1.1", source="dpkg")


def test_cpu_names_are_read_without_an_architecture(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nFeatures : fp asimd asimddp i8mm\nCPU implementer : 0x41\n")
    found = read_cpu(tmp_path, machine=None)
    assert (found.machine, found.name, found.features) == ("aarch64", None, ("asimddp", "i8mm"))
