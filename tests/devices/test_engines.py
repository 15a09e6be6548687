from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from smart_devices import (
    EngineInfo,
    EngineStatus,
    UnknownEngineError,
    engine_info,
    engine_names,
    engine_rows,
    engine_status,
)
from smart_devices.engines import diagnose

REPORT = """
import sys
from smart_devices import engine_status
status = engine_status("onnxruntime-cpu")
print(status.available, status.version, status.reason, status.install, sep="|")
assert "onnxruntime" not in sys.modules, "a look must not import the engine"
"""


def status_in_a_process_with(folder: Path) -> list[str]:
    """What a fresh interpreter says that finds ``folder``, the standard library and nothing else."""
    source = Path(sys.modules["smart_devices"].__file__ or "").parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(source)])}
    # -S leaves site-packages out, which is how a machine without any engine looks.
    done = subprocess.run(
        [sys.executable, "-S", "-c", REPORT], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("|")


def install_fake(folder: Path, *, distribution: str, version: str) -> None:
    """Write what pip leaves of a distribution that holds the module ``onnxruntime``."""
    (folder / "onnxruntime").mkdir()
    (folder / "onnxruntime" / "__init__.py").write_text("raise ImportError('a look must not import this')\n")
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")


def test_the_engine_of_this_machine_is_found_with_its_version() -> None:
    status = engine_status("onnxruntime-cpu")
    assert status.available
    assert status.version == metadata.version("onnxruntime")
    assert (status.reason, status.install) == (None, None)


def test_without_the_module_it_says_so_and_names_the_command(tmp_path: Path) -> None:
    assert status_in_a_process_with(tmp_path) == [
        "False",
        "None",
        "the Python module onnxruntime is not installed",
        "pip install 'smart-edge[cpu]'",
    ]


def test_a_folder_that_merely_has_the_name_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    assert status_in_a_process_with(tmp_path)[0] == "False"


@pytest.mark.parametrize(
    ("distribution", "version", "available"),
    [
        ("onnxruntime", "1.23.0", True),
        ("onnxruntime", "1.22.1", False),
        ("onnxruntime", "1.9.0", False),
        ("onnxruntime", "2.0.0", True),
        ("onnxruntime-gpu", "1.31.0", True),
    ],
)
def test_old_versions_are_refused_whatever_the_build_is_called(
    tmp_path: Path, distribution: str, version: str, available: bool
) -> None:
    install_fake(tmp_path, distribution=distribution, version=version)
    answer, found, reason, command = status_in_a_process_with(tmp_path)
    assert (answer, found) == (str(available), version)
    if not available:
        assert reason == f"onnxruntime {version} is older than 1.23"
        assert command == "pip install 'smart-edge[cpu]' --upgrade"


def test_what_smart_edge_can_drive() -> None:
    assert engine_names() == ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")


@pytest.mark.parametrize("info", engine_rows.ENGINES, ids=lambda info: info.name)
def test_every_row_names_a_judge_that_gives_its_status(info: EngineInfo) -> None:
    assert engine_status(info.name).name == info.name
    assert info.needs
    assert engine_info(info.name) is info


def test_a_row_that_is_added_is_known_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = f"{__name__}:abacus"
    row = EngineInfo(name="abacus", needs="a steady hand", part="cpu", judge=judge, factory="beads:Engine")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(abacus=lambda _: EngineStatus("abacus", available=True)))
    monkeypatch.setattr(engine_rows, "ENGINES", (row, *engine_rows.ENGINES))
    assert engine_names()[0] == "abacus"
    assert "abacus" in engine_names()
    assert engine_status("abacus").available
    assert diagnose().engines[0].name == "abacus"


def test_an_unknown_engine_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownEngineError, match=r"unknown engine 'onnxruntime-cpus'; did you mean onnxruntime-cpu\?"):
        engine_status("onnxruntime-cpus")
    with pytest.raises(
        UnknownEngineError, match=r"unknown engine 'openvino'; there are tensorrt, .*, onnxruntime-cpu, "
    ):
        engine_status("openvino")
