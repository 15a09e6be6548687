"""Ctrl-C while modules are imported, and programs that are finished but for a thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime.bundles import write_bundle
from smart_common.console import entry

# Ctrl-C comes at the moment when a module is looked for, however long what is before it takes. Inside of a finalizer
# Python loses the exception; so do some libraries.
_STRIKE = """
import os, signal, sys
how, where, command = sys.argv[1:4]
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
class Strike:
    def find_spec(self, name, *_):
        if name == where:
            sys.meta_path.remove(self)
            Finalized() if how == "lost" else os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Strike())
sys.argv = [command, *sys.argv[4:]]
import smart_common.console.entry as entry
getattr(entry, command)()
"""
TRAINING = ["--data", "digits", "--eps", "0.3", "--epochs", "1", "--train-images", "64", "-o", "{}/a.pt"]


def struck_at(
    module: str, command: str, *arguments: str, how: str = "raised", start: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    call = [*start, sys.executable, "-c", _STRIKE, how, module, command, *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=300)


def write_inputs(folder: Path) -> None:
    write_bundle(folder / "bundle")
    import_module("PIL.Image").new("RGB", (8, 8)).save(folder / "picture.png")


@pytest.mark.parametrize(
    ("command", "module", "arguments"),
    [
        ("smart_edge", "click", ["--help"]),
        ("smart_edge", "smart_devices.cli", ["devices", "list"]),
        ("smart_run", "importlib", ["--help"]),
        ("smart_run", "smart_runtime.cli", ["--help"]),
        ("smart_run", "numpy", ["info", "nowhere"]),
        ("smart_run", "onnxruntime.capi", ["infer", "{}/bundle", "{}/picture.png"]),
        ("smart_bench", "smart_runtime.bench", ["--help"]),
        ("smart_devices", "smart_common.console.cli", ["--help"]),
        ("smart_train", "smart_train.cli", ["--help"]),
        ("smart_train", "torch", TRAINING),
        # Slow: seconds of imports for what the rows above and below show of another module or command.
        # NumPy imports it lazily, and again after any failure.
        pytest.param("smart_train", "numpy.dtypes", TRAINING, marks=pytest.mark.slow),
        ("smart_eval", "click", ["--help"]),
        pytest.param("smart_export", "torch", ["info", "{}/a.pt"], marks=pytest.mark.slow),
        ("smart_export", "onnx", ["check", "{}/bundle"]),
    ],
)
def test_ctrl_c_while_modules_are_imported(command: str, module: str, arguments: list[str], tmp_path: Path) -> None:
    write_inputs(tmp_path)
    done = struck_at(module, command, *(argument.format(tmp_path) for argument in arguments))
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize(
    ("command", "module", "arguments", "said"),
    [
        ("smart_run", "click", ["--help"], ""),
        pytest.param("smart_train", "smart_train.cli", TRAINING, "", marks=pytest.mark.slow),  # as smart_run's click
        ("smart_train", "sklearn", TRAINING, "interrupted: nothing was changed\n"),
        ("smart_run", "PIL", ["infer", "{}/bundle", "{}/picture.png"], "interrupted: nothing was changed\n"),
        ("smart_devices", "rich.table", ["list"], "interrupted: the work was done already\n"),
    ],
)
def test_ctrl_c_that_is_lost_ends_the_command_all_the_same(
    command: str, module: str, arguments: list[str], said: str, tmp_path: Path
) -> None:
    write_inputs(tmp_path)
    done = struck_at(module, command, *(argument.format(tmp_path) for argument in arguments), how="lost")
    assert (done.returncode, done.stderr) == (130, said.format(tmp_path))
    assert not (tmp_path / "a.pt").exists()


def test_ctrl_c_is_ignored_where_it_was_before() -> None:
    """As after nohup, and in the background of a script."""
    start = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    done = struck_at("click", "smart_run", "--help", start=start)
    assert (done.returncode, done.stderr) == (0, "")


_TWICE = """
import os, signal, sys
import smart_common.console.entry as entry
from smart_common.console.cli import Command
def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        pass
    print("went on", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("and on")
entry.command = lambda _: Command("work", callback=work)
sys.argv = ["work"]
entry.smart_run()
"""


def test_a_second_strike_works_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", _TWICE], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (130, "went on\n")
    assert done.stderr == "interrupted: nothing was changed\n"


def test_only_entry_points_in_the_main_thread_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    main = import_module("smart_runtime.cli").main
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(sys, "argv", ["smart-run", "--help"])
    ended = []

    def run() -> None:
        with pytest.raises(SystemExit) as end:
            entry.smart_run()
        ended.append(end.value.code)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [0]
    assert signal.getsignal(signal.SIGINT) is before


_FINISHED = """
import asyncio, sys
import numpy as np
from smart_runtime import SmartModel
model = SmartModel.load(sys.argv[1], threads=2)
images = np.full((1, *model.manifest.input.shape), 0.5, np.float32)
with model.using("robust"):
    asyncio.run(model.arun(images))
print(model.run(images).path, flush=True)
"""


def test_a_finished_program_ends_with_its_model_open(tmp_path: Path) -> None:
    """With threads of its engines and one of asyncio's pool, and no close."""
    start = time.monotonic()
    call = [sys.executable, "-c", _FINISHED, str(write_bundle(tmp_path / "bundle"))]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr
    assert time.monotonic() - start < 30
