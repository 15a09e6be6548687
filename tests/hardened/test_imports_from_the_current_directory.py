"""No command, and no process that one starts, imports what lies in the current directory, beside a download."""

from __future__ import annotations

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


def shown(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_process_of_ours_takes_arguments_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shown_arguments.py").write_text("import sys\nprint(__name__, sys.argv[1:], '' in sys.path)\n")
    assert shown(python_command("shown_arguments"), tmp_path).returncode == 1
    monkeypatch.syspath_prepend(tmp_path)
    done = shown(python_command("shown_arguments", "-c", "a b"), ROOT)
    assert done.stdout == "__main__ ['-c', 'a b'] False\n", done.stderr


def test_a_process_of_ours_finds_modules_where_this_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory is left out where Python itself put it, at the front, and not where it is installed."""
    (tmp_path / "shown_arguments.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    command = python_command("shown_arguments")
    monkeypatch.delenv("PYTHONPATH", raising=False)  # of the child
    assert shown(command, tmp_path).returncode == 1
    for named in (str(tmp_path), f"/nowhere:{tmp_path}/", ":/nowhere"):
        monkeypatch.setenv("PYTHONPATH", named)
        command = python_command("shown_arguments")
        monkeypatch.delenv("PYTHONPATH", raising=False)
        assert shown(command, tmp_path).returncode == 0
    monkeypatch.setattr(sys, "path", [*sys.path[1:], str(tmp_path)])
    assert shown(python_command("shown_arguments"), tmp_path).returncode == 0


def test_every_process_of_ours_starts_that_way() -> None:
    folders = ("devices", "runtime", "train", "export", "examples")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if file.name != "children.py"]
    assert len(files) > 100
    starts = re.compile(
        r"sys\.executable|\bPopen\((?!\s*python_command\()|\b(?:import|from) multiprocessing|multiprocessing\.\w"
        r"|os\.exec|os\.spawn"
    )
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


@pytest.mark.parametrize("planted", ["file", "link"])
def test_a_style_that_lies_there_draws_no_plot(planted: str, tmp_path: Path) -> None:
    """Text would be set by a run of TeX; a caller's own settings are back afterwards."""
    folder = tmp_path / "download"
    (folder / "below").mkdir(parents=True)
    style = folder / ("matplotlibrc" if planted == "file" else "below/style")
    style.write_text("text.usetex: True\n")
    if planted == "link":
        (folder / "matplotlibrc").symlink_to(style)
    code = (
        "from pathlib import Path; from smart_common.figures import drawing; import matplotlib as mpl\n"
        "mpl.rcParams['font.size'] = 7\n"
        "with drawing(Path('plot.png'), width=1, height=1) as figure: figure.suptitle('title')\n"
        "print(figure.texts[0].get_usetex(), mpl.rcParams['font.size'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout == "False 7.0\n", done.stderr
