from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from smart_devices import ENGINES, engine_status

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


def test_only_engines_that_exist_today_are_driven() -> None:
    assert ENGINES == ("onnxruntime-cpu",)


def test_an_engine_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of tensorrt, .*, onnxruntime-cpu, .*, got 'openvino'"):
        engine_status("openvino")
