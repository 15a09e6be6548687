"""No command, and no process that one starts, imports what lies in the current directory, beside a download."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from runtime.bundles import write_bundle
from smart_common.children import python_command

ROOT = Path(__file__).resolve().parents[2]
PLANTED = ("numpy", "json", "onnx", "torch", "sitecustomize", "onnxruntime", "click", "random", "PIL", "matplotlib")
# What pip installs for a command: the folder of the script comes first then, and not the current one.
SCRIPT = "import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
COMMANDS = {
    "bench": ("smart_runtime.bench.cli", "main", ["bundle", "--blocks", "2", "--json"]),
    "run": ("smart_runtime.cli", "main", ["infer", "bundle", "picture.png"]),
    "devices": ("smart_devices.cli", "main", ["detect"]),
    "train": ("smart_common.console.entry", "smart_train", ["--data", "npz:data.npz", "--no-cache"]),
    "eval": ("smart_common.console.entry", "smart_eval", ["bundle", "--attack", "clean", "--data", "npz:data.npz"]),
    "export": ("smart_common.console.entry", "smart_export", ["check", "bundle", "--json"]),
}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A directory with a bundle, a picture, data that is none, and modules that say so when they are imported."""
    pillow = import_module("PIL.Image")
    folder = tmp_path / "download"
    folder.mkdir()
    write_bundle(folder / "bundle")
    pillow.new("RGB", (8, 8)).save(folder / "picture.png")
    (folder / "data.npz").write_bytes(b"none")
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path)!r} + '/ran-{name}', 'w').close()\n")
    return folder


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.slow if name in {"train", "eval"} else ()) for name in COMMANDS]
)
def test_a_command_imports_nothing_that_lies_beside_its_input(command: str, download: Path, tmp_path: Path) -> None:
    module, function, arguments = COMMANDS[command]
    script = tmp_path / "bin" / f"smart-{command}"
    script.parent.mkdir()
    script.write_text(SCRIPT.format(module=module, function=function))
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=download, capture_output=True, text=True, check=False, timeout=60
    )
    assert sorted(path.name for path in tmp_path.glob("ran-*")) == []
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if command in {"train", "eval"} else 0), done.stderr


def test_a_process_of_ours_takes_arguments_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "shown_arguments.py").write_text("import sys\nprint(__name__, sys.argv[1:], '' in sys.path)\n")
    for folder, status in ((tmp_path, 1), (ROOT, 0)):  # the second finds it by PYTHONPATH only
        done = subprocess.run(
            python_command("shown_arguments", "-c", "a b"),
            cwd=folder,
            env=os.environ | ({"PYTHONPATH": str(tmp_path)} if folder == ROOT else {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
    assert done.stdout == "__main__ ['-c', 'a b'] False\n"


def test_every_process_of_ours_starts_that_way() -> None:
    folders = ("devices", "runtime", "train", "export", "examples")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if file.name != "children.py"]
    assert len(files) > 100
    starts = re.compile(r"sys\.executable|\bPopen\(|multiprocessing|os\.exec|os\.spawn")
    assert [str(file) for file in files if starts.search(file.read_text(encoding="utf-8"))] == []


def test_a_planted_module_never_stands_for_an_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smart_train.architectures.custom import import_factory  # noqa: PLC0415  # torch

    (tmp_path / "colorsys.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (tmp_path / "my_own_nets.py").write_text("import colorsys\ndef build(**_): return colorsys\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    path_before = list(sys.path)
    for name in ("my_own_nets:build", "my_own_nets.py:build"):
        monkeypatch.delitem(sys.modules, "colorsys", raising=False)
        import_factory(name)
    assert sys.path == path_before
    assert not (tmp_path / "ran").exists()


def test_a_style_that_lies_there_draws_no_plot(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    code = (
        "from smart_common.figures import new_figure; import matplotlib; new_figure(width=1, height=1); "
        "print(matplotlib.rcParams['text.usetex'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
