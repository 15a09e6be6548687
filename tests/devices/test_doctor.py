"""What the doctor says of this machine, and of recorded ones with each Python that a user may have there."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys
import venv
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devices.boards import BOARDS, Board
from smart_devices import EngineStatus, engine_names, engine_status
from smart_devices.detection import Cards, detect
from smart_devices.engines import diagnose
from smart_devices.gpu_engines import Driver, Surroundings, find_driver
from smart_devices.profiles import load_profile, profile_names
from smart_devices.python_environment import PythonEnvironment, this_python
from smart_devices.sysfs import Files

WITHOUT_DRIVER = pytest.mark.skipif(
    Path("/dev/nvidiactl").exists() or Path("/proc/device-tree/compatible").exists(),
    reason="needs a machine without NVIDIA driver",
)


def python(
    version: str = "3.10",
    *,
    virtual: bool = True,
    system_packages: bool = False,
    modules: Mapping[str, str] | None = None,
    distributions: Mapping[str, str] | None = None,
) -> PythonEnvironment:
    return PythonEnvironment(
        version=version,
        prefix="/home/me/venv",
        virtual=virtual,
        system_packages=system_packages,
        find=(modules or {}).get,
        version_of=(distributions or {}).get,
    )


def on(board: Board, root: Path, python: PythonEnvironment, driver: Driver | None = None) -> Surroundings:
    machine = detect(board.write(root), run=board.run, cards=lambda: board.cards, architecture=board.architecture)
    return Surroundings(machine=machine, driver=driver or Driver(cuda="13.0"), python=python)


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smart_devices.cli", "doctor", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@WITHOUT_DRIVER
def test_this_machine_runs_the_cpu_engine_and_builds_for_cards_it_does_not_have() -> None:
    done = doctor("--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    engines = {status["name"]: status for status in answer["engines"]}
    assert set(engines) == {*engine_names(), "tensorrt-rtx-builder"}
    cpu, rtx, builder = engines["onnxruntime-cpu"], engines["tensorrt-rtx"], engines["tensorrt-rtx-builder"]
    assert (cpu["available"], cpu["version"]) == (True, metadata.version("onnxruntime"))
    assert (builder["available"], builder["version"]) == (True, metadata.version("tensorrt-rtx-cu12"))
    assert (rtx["available"], rtx["version"]) == (False, builder["version"])
    for missing in ("no NVIDIA driver", "libcuda.so.1", "libnvidia-ml.so.1", "/dev/nvidia*"):
        assert missing in rtx["reason"]
    assert not engines["tensorrt"]["available"]
    assert "pip install 'smart-edge[tensorrt]'" in engines["tensorrt"]["reason"]
    assert answer["can_run"]
    assert answer["next_steps"] == []


@WITHOUT_DRIVER
def test_the_same_for_people() -> None:
    done = doctor()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert f"onnxruntime-cpu: yes, {metadata.version('onnxruntime')}" in lines
    assert f"tensorrt-rtx-builder: yes, {metadata.version('tensorrt-rtx-cu12')} (builds engines, runs none)" in lines
    assert "tensorrt: no" in lines
    assert "None" not in done.stdout
    assert "next:" not in done.stdout


def test_without_any_engine_the_exit_status_is_1() -> None:
    hide = (
        "import runpy, sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name == 'onnxruntime' else find(name, *rest)\n"
        "sys.argv = ['smart-devices', 'doctor']\n"
        "runpy.run_module('smart_devices.cli', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "onnxruntime-cpu: no\n" in done.stdout
    assert "pip install 'smart-edge[cpu]'" in done.stdout


def test_a_look_imports_no_engine() -> None:
    script = (
        "import sys\nbefore = set(sys.modules)\nfrom smart_devices.engines import diagnose\ndiagnose()\n"
        "engines = {'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'numpy', 'cuda', 'torch'}\n"
        "print(sorted(engines & (set(sys.modules) - before)))"  # Python itself may come with some
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_every_engine_of_a_profile_can_be_judged() -> None:
    for profile in map(load_profile, profile_names()):
        assert set(profile.engines) <= set(engine_names()), profile.name


class TestTensorRtOnAJetson:
    """JetPack installs it for the system's Python alone; `AGX Orin 64GB` has it for 3.10."""

    MODULE = "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py"

    def status(self, root: Path, python: PythonEnvironment, name: str = "AGX Orin 64GB") -> EngineStatus:
        return engine_status("tensorrt", around=on(BOARDS[name], root, python))

    def test_the_systems_python_has_it(self, tmp_path: Path) -> None:
        status = self.status(tmp_path, python(virtual=False, system_packages=True, modules={"tensorrt": self.MODULE}))
        assert status == EngineStatus("tensorrt", available=True, version="10.3.0.30")

    def test_a_virtual_environment_is_told_how_to_let_the_system_packages_in(self, tmp_path: Path) -> None:
        status = self.status(tmp_path, python())
        assert "this virtual environment does not see the system's packages" in str(status.reason)
        assert status.install == "/usr/bin/python3.10 -m venv --system-site-packages /home/me/venv"

    def test_another_python_is_told_which_one_it_takes(self, tmp_path: Path) -> None:
        status = self.status(tmp_path, python("3.11", virtual=False))
        assert "is made for Python 3.10, and this is 3.11" in str(status.reason)
        assert str(status.install).startswith("/usr/bin/python3.10 -m venv --system-site-packages .venv")

    def test_a_python_of_the_same_version_that_is_not_the_systems(self, tmp_path: Path) -> None:
        status = self.status(tmp_path, python(virtual=False))
        assert "is not the system's" in str(status.reason)

    def test_a_package_whose_module_is_broken(self, tmp_path: Path) -> None:
        status = self.status(tmp_path, python(virtual=False, system_packages=True))
        assert status.install == "sudo apt install --reinstall python3-libnvinfer"

    def test_a_board_without_the_package(self, tmp_path: Path) -> None:
        status = self.status(tmp_path, python("3.10"), "Orin Nano Super")
        assert (status.available, status.install) == (False, "sudo apt install python3-libnvinfer")

    def test_one_that_is_too_old_says_which_jetpack_it_takes(self, tmp_path: Path) -> None:
        system = python("3.8", virtual=False, system_packages=True, modules={"tensorrt": self.MODULE})
        status = self.status(tmp_path, system, "Xavier NX")
        assert (status.available, status.version, status.install) == (False, "8.5.2.2", None)
        assert status.reason == "TensorRT 8.5.2.2 is older than 8.6, which came with JetPack 6; flash that or newer"

    @pytest.mark.parametrize(
        ("installed", "named"),
        [([], "tensorrt"), (["tensorrt", "tensorrt-cu12", "tensorrt-cu12-bindings", "tensorrt-cu12-libs"], None)],
    )
    def test_one_from_the_registry_hides_it_and_that_is_a_warning(
        self, tmp_path: Path, installed: list[str], named: str | None
    ) -> None:
        shadow = "/home/me/venv/lib/python3.10/site-packages/tensorrt/__init__.py"
        here = python(modules={"tensorrt": shadow}, distributions=dict.fromkeys(installed, "11.4.0"))
        (warning,) = diagnose(on(BOARDS["AGX Orin 64GB"], tmp_path, here)).warnings
        assert warning.endswith(f"for this board: pip uninstall -y {named or ' '.join(installed)}")

    def test_that_advice_does_it(self, tmp_path: Path) -> None:
        """Made over an environment that is there, as the doctor says, a new one keeps it and changes the key."""
        venv.create(tmp_path / "venv", with_pip=False)
        ask = "from smart_devices.python_environment import _lets_system_packages_in as ask\nimport sys\n"
        ask += "from pathlib import Path\nprint(ask(Path(sys.argv[1])), ask(Path(sys.argv[1]) / 'none'))"
        for expected in ("False", "True"):
            done = subprocess.run(
                [sys.executable, "-c", ask, str(tmp_path / "venv")], capture_output=True, text=True, check=True
            )
            assert done.stdout.split() == [expected, "False"]
            (tmp_path / "venv" / "kept").touch()
            venv.create(tmp_path / "venv", with_pip=False, system_site_packages=True)
        assert (tmp_path / "venv" / "kept").exists()


def test_tensorrt_rtx_is_not_for_a_jetson(tmp_path: Path) -> None:
    everything = python(modules={"tensorrt_rtx": "/x.py"}, distributions={"tensorrt-rtx-cu12": "1.7.1"})
    status = engine_status("tensorrt-rtx", around=on(BOARDS["AGX Thor"], tmp_path, everything))
    assert not status.available
    assert "not for a Jetson" in str(status.reason)


def test_a_pc_with_everything_runs_everything(tmp_path: Path) -> None:
    library = tmp_path / "site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"
    library.parent.mkdir(parents=True)
    library.touch()
    modules = {name: f"/{name}/__init__.py" for name in ("tensorrt", "tensorrt_rtx")}
    everything = python(
        modules={**modules, "onnxruntime": str(tmp_path / "site-packages/onnxruntime/__init__.py")},
        distributions={"tensorrt": "10.13.3", "tensorrt-rtx-cu12": "1.7.1", "onnxruntime-gpu": "1.31.0"},
    )
    diagnosis = diagnose(on(BOARDS["PC with a card"], tmp_path / "root", everything))
    versions = {status.name: status.version for status in diagnosis.engines if status.available}
    assert versions.pop("onnxruntime-cpu")  # of the process that runs this test
    assert versions == {
        "tensorrt": "10.13.3",
        "tensorrt-rtx": "1.7.1",
        "onnxruntime-cuda": "1.31.0",
        "tensorrt-rtx-builder": "1.7.1",
    }
    assert diagnosis.warnings == ()
    assert diagnosis.cuda_driver == "13.0"
    commands = [step.partition(" builds ")[0].partition(" checks ")[0] for step in diagnosis.next_steps]
    assert commands == [
        "smart-run install BUNDLE --engine tensorrt",
        "smart-run install BUNDLE --engine tensorrt-rtx",
        "smart-run selftest BUNDLE --json",
    ]


@pytest.mark.parametrize(("version", "available"), [("8.5.3.1", False), ("8.6.1", True), ("11.4.0.106", True)])
def test_a_tensorrt_that_is_too_old(tmp_path: Path, version: str, available: bool) -> None:
    here = python(modules={"tensorrt": "/x.py"}, distributions={"tensorrt-cu12": version})
    status = engine_status("tensorrt", around=on(BOARDS["PC with a card"], tmp_path, here))
    assert (status.available, status.version) == (available, version)
    assert status.install == (None if available else "pip install 'smart-edge[tensorrt]' --upgrade")


@pytest.mark.parametrize(
    ("architecture", "install"),
    [("x86_64", "pip install 'smart-edge[tensorrt]'"), ("aarch64", "pip install tensorrt-cu13")],
)
def test_how_to_get_tensorrt_on_a_machine_that_is_no_jetson(tmp_path: Path, architecture: str, install: str) -> None:
    board = dataclasses.replace(BOARDS["PC with a card"], architecture=architecture)
    assert engine_status("tensorrt", around=on(board, tmp_path, python())).install == install


def test_a_card_that_is_too_old_for_tensorrt_rtx(tmp_path: Path) -> None:
    board = BOARDS["PC with a card"]
    old = dataclasses.replace(board.cards.cards[0], name="Tesla V100-SXM2-16GB", compute_capability="7.0")
    board = dataclasses.replace(board, cards=dataclasses.replace(board.cards, cards=(old,)))
    around = on(board, tmp_path, python(modules={"tensorrt_rtx": "/x.py"}))
    assert "needs 7.5" in str(engine_status("tensorrt-rtx", around=around).reason)


@pytest.mark.parametrize(
    ("name", "distributions", "expected"),
    [
        ("PC with a card", {}, "pip install 'smart-edge[gpu]'"),
        ("PC with a card", {"onnxruntime": "1.32.0"}, "pip uninstall -y onnxruntime && pip install 'smart-edge[gpu]'"),
        ("Orin Nano Super, JetPack 7", {}, "pip install 'smart-edge[gpu]'"),
        ("Orin NX 16GB", {}, None),  # JetPack 6 has CUDA 12: no build in the registry
    ],
)
def test_how_to_get_onnxruntime_with_cuda(
    tmp_path: Path, name: str, distributions: Mapping[str, str], expected: str | None
) -> None:
    status = engine_status("onnxruntime-cuda", around=on(BOARDS[name], tmp_path, python(distributions=distributions)))
    assert (status.available, status.install) == (False, expected)
    assert status.reason


def test_two_builds_of_onnxruntime_at_once_are_a_warning(tmp_path: Path) -> None:
    both = python(distributions={"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"})
    warnings = diagnose(on(BOARDS["PC with a card"], tmp_path, both)).warnings
    assert [warning.partition(" are both")[0] for warning in warnings] == ["onnxruntime and onnxruntime-gpu"]


def test_a_driver_without_the_library_to_ask_is_a_warning(tmp_path: Path) -> None:
    board = dataclasses.replace(BOARDS["host without GPU"], cards=Cards(reason="why"))
    warnings = diagnose(on(board, tmp_path, python())).warnings
    assert any("which card this is is unknown: why" in warning for warning in warnings)


class TestDriver:
    """Libraries are given by the test: a real driver needs a card."""

    @staticmethod
    def nothing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    @staticmethod
    def newest(_: str) -> Any:
        def version(answer: Any) -> int:
            ctypes.cast(answer, ctypes.POINTER(ctypes.c_int))[0] = 13020
            return 0

        return SimpleNamespace(cuDriverGetVersion=version)

    def find(self, board: Board, root: Path, load: Any) -> Driver:
        board.write(root)
        machine = detect(root, run=board.run, cards=lambda: board.cards, architecture=board.architecture)
        return find_driver(machine, Files(root), load=load)

    def test_a_pc_without_any(self, tmp_path: Path) -> None:
        driver = self.find(BOARDS["host without GPU"], tmp_path, self.nothing)
        assert "libcuda.so.1, libnvidia-ml.so.1 and /dev/nvidia* are missing" in str(driver.reason)
        assert "no NVIDIA card is on the bus" in str(driver.reason)
        assert driver.install is None

    def test_a_card_without_driver_names_the_command(self, tmp_path: Path) -> None:
        bus = "/sys/bus/pci/devices/0000:01:00.0"
        board = Board(files={f"{bus}/vendor": "0x10de\n", f"{bus}/class": "0x030000\n"}, architecture="x86_64")
        assert self.find(board, tmp_path, self.nothing).install == "sudo ubuntu-drivers install"

    def test_a_network_card_of_the_same_maker_is_no_graphics_card(self, tmp_path: Path) -> None:
        bus = "/sys/bus/pci/devices/0000:01:00.0"
        board = Board(files={f"{bus}/vendor": "0x10de\n", f"{bus}/class": "0x020000\n"}, architecture="x86_64")
        assert self.find(board, tmp_path, self.nothing).install is None

    def test_a_container_without_the_devices_names_the_option(self, tmp_path: Path) -> None:
        driver = self.find(Board(files={"/.dockerenv": ""}, architecture="x86_64"), tmp_path, self.newest)
        assert "/dev/nvidia* is missing" in str(driver.reason)
        assert "docker run --gpus all" in str(driver.reason)

    def test_a_jetson_in_a_container_needs_another(self, tmp_path: Path) -> None:
        board = Board(files={"/.dockerenv": "", "/proc/sys/kernel/osrelease": "5.15.148-tegra\n"})
        driver = self.find(board, tmp_path, self.nothing)
        assert "libcuda.so.1 and /dev/nvhost-ctrl-gpu are missing" in str(driver.reason)
        assert "docker run --runtime nvidia" in str(driver.reason)

    @pytest.mark.parametrize(
        ("name", "device"),
        [("AGX Orin 64GB", "nvhost-ctrl-gpu"), ("PC with a card", "nvidia0"), ("PC with a card", "dxg")],
    )
    def test_a_whole_one_says_which_cuda_it_runs(self, tmp_path: Path, name: str, device: str) -> None:
        board = dataclasses.replace(BOARDS[name], files={**BOARDS[name].files, f"/dev/{device}": ""})
        assert self.find(board, tmp_path, self.newest) == Driver(cuda="13.2")

    def test_one_that_does_not_say_its_version_is_one_still(self, tmp_path: Path) -> None:
        board = dataclasses.replace(BOARDS["PC with a card"], files={"/dev/nvidia0": ""})
        assert self.find(board, tmp_path, lambda _: SimpleNamespace()) == Driver(cuda=None)


def test_this_python_is_described_as_it_is() -> None:
    here = this_python()
    assert here.version == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert here.virtual == (sys.prefix != sys.base_prefix)
    assert here.find("json") == json.__file__
    assert here.find("no_such_module") is None
    assert here.version_of("pytest") == metadata.version("pytest")
    assert here.version_of("no-such-distribution") is None
    assert here.first_version_of("no-such-distribution", "pytest") == metadata.version("pytest")
