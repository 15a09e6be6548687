from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from devices.boards import BOARDS
from smart_devices import load_profile, parse_profile, profile_names
from smart_devices.cli import main


def smart_devices(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as users do: a process of its own, no terminal, nothing on standard input."""
    return subprocess.run(
        [sys.executable, "-m", "smart_devices.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_list_as_a_table() -> None:
    done = smart_devices("list")
    assert (done.returncode, done.stderr) == (0, "")
    for name in profile_names():
        line = next(line for line in done.stdout.splitlines() if name in line)
        assert all(alias in line for alias in load_profile(name).aliases)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout, "a cell was cut off"
    assert done.stdout.splitlines()[-1] == "export only: jetson-agx-xavier, jetson-xavier-nx"


def test_list_as_json_holds_every_profile_in_full() -> None:
    done = smart_devices("list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    profiles = json.loads(done.stdout)["profiles"]
    assert [parse_profile(profile, where="stdout") for profile in profiles] == list(map(load_profile, profile_names()))


@pytest.mark.parametrize("name", profile_names())
def test_show_gives_sources_and_says_unknown(name: str) -> None:
    done = CliRunner().invoke(main, ["show", name])  # a process for each would take seconds to say the same
    assert (done.exit_code, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    profile = load_profile(name)
    assert profile.title in text
    assert profile.onnx_opset.source.split()[0] in text
    figures = [profile.memory.size, *(pair.dense for pair in profile.throughput.values())]
    if any(figure.value is None for figure in figures):
        assert "unknown" in text
    assert ("export only" in text) == (profile.export_only is not None)
    for mode in profile.power_modes:
        assert mode.name in text
    assert "None" not in text
    assert "null" not in text


def test_show_as_json_reports_the_alias_and_the_profile() -> None:
    done = smart_devices("show", "jetson-orin", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer.pop("requested"), answer["name"]) == ("jetson-orin", "jetson-agx-orin-64gb")
    assert parse_profile(answer, where="stdout") == load_profile("jetson-orin")


def test_detect_reads_another_machines_disc(tmp_path: Path) -> None:
    done = smart_devices("detect", "--json", "--root", str(BOARDS["Orin Nano Super"].write(tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer["profile"], answer["reason"]) == ("jetson-orin-nano-8gb", None)
    board = answer["jetson"]
    assert (board["module"], board["soc"], board["super_modes"]) == ("p3767-0005", "tegra234", True)
    assert (board["l4t"], board["jetpack"]) == ("36.4.3", {"version": "6.2", "source": "table"})
    assert board["power_mode"] == {"name": "MAXN_SUPER", "source": "files"}


@pytest.mark.parametrize("name", BOARDS)
def test_detect_for_people_fits_the_screen_and_says_unknown(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(main, ["detect", "--root", str(BOARDS[name].write(tmp_path))])
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("machine ")
    assert max(map(len, lines)) <= 80
    assert "None" not in done.stdout
    assert ("Jetson" in done.stdout) == (name not in {"PC with a card", "host without GPU"})


def test_an_unknown_name_is_one_sentence_and_status_1() -> None:
    done = smart_devices("show", "toaster", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: unknown target 'toaster'; there are a100, ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["list"], ["show"], ["detect"], ["doctor"]], ids=" ".join)
def test_help_has_an_example_that_works(arguments: list[str]) -> None:
    done = smart_devices(*arguments, "--help")
    assert done.returncode == 0
    example = next(line for line in done.stdout.splitlines() if "Example: smart-devices " in line)
    assert smart_devices(*example.partition("smart-devices ")[2].split()).returncode == 0


def test_version() -> None:
    done = smart_devices("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("smart-devices, version ")
