"""What docs/gpu.md has its readers do: on stand-ins all of it; without a GPU up to the driver, in one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cuda.stand_in import StandInDriver
from runtime.bundles import write_bundle
from smart_devices.cli import main as devices
from smart_runtime.bench.cli import main as bench
from smart_runtime.cli import main as run
from smart_runtime.selfcheck import model_checks
from trt.machine import gpu_machine

PAGE = (Path(__file__).parents[2] / "docs/gpu.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
WRITTEN = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
TYPED = [line for line in WRITTEN if line.startswith("smart-")]
IN_SENTENCES = [one for one in re.findall(r"`(smart-run [^`]+)`", PAGE) if len(one.split()) > 2]
COMMANDS = list(dict.fromkeys(command.partition(" > ")[0] for command in (*TYPED, *IN_SENTENCES)))
MAINS: dict[str, click.Command] = {"smart-devices": devices, "smart-run": run, "smart-bench": bench}

WITHOUT_GPU = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="needs a machine without a GPU")


@pytest.fixture(autouse=True)
def _reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with what the page calls `bundle` and `picture.png`, and less patience than a reader has."""
    write_bundle(tmp_path / "bundle", reference=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the page tidies up its reader's own
    for name, fewer in (("_CALLS", 3), ("_RELOADS", 1), ("_IMAGES", 4), ("_THREADS", 2)):
        monkeypatch.setattr(model_checks, name, fewer)
    monkeypatch.setattr("smart_runtime.bench.measure._BLOCK_MS", 0.5)


def invoke(command: str) -> Result:
    name, *words = shlex.split(command)
    short = ["--blocks", "2"] if name == "smart-bench" else []
    return CliRunner().invoke(MAINS[name], [*words, *short], catch_exceptions=False)


def test_the_page_has_the_commands_that_it_should() -> None:
    begun = {" ".join(command.split()[:2]) for command in TYPED}
    assert begun >= {"smart-devices doctor", "smart-run install", "smart-run infer", "smart-run selftest"}
    assert any(command.startswith("smart-bench") for command in TYPED)


def test_every_command_runs_on_stand_ins(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path
) -> None:
    monkeypatch.setattr("smart_runtime.bench.compare.solo_median_ms", lambda _: 1.0)  # a process without stand-ins
    monkeypatch.setattr("smart_runtime.bench.compare.WARM_UP_MS", {"gpu": 0.1})
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path / "cache") as built:
        for command in COMMANDS:
            done = invoke(command)
            assert done.exit_code == 0, f"{command}\n{done.output}"
            if command == "smart-devices doctor":
                assert "next: smart-run install BUNDLE --engine tensorrt builds" in done.stdout
                assert "next: smart-run selftest BUNDLE --json checks" in done.stdout
            if "--json" in command:
                assert json.loads(done.stdout)
        assert {(recipe.level, recipe.workspace_bytes) for recipe in built} == {(3, None), (2, 512 * 2**20)}


def test_its_python_prints_what_it_says(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path
) -> None:
    ((code, printed),) = re.findall(r"```python\n(.*?)```\n```\n(.*?)```", PAGE, re.DOTALL)
    said, names = io.StringIO(), dict[str, Any]()
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path / "cache"), contextlib.redirect_stdout(said):
        exec(compile(code, "docs/gpu.md", "exec"), names)  # noqa: S102  # what its reader does
    assert said.getvalue() == printed


@WITHOUT_GPU
@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_gpu_it_is_one_sentence(command: str) -> None:
    done = invoke(command)
    if command.startswith("smart-devices"):  # it says what is missing, whatever is
        assert "libcuda.so.1" in done.stdout
        return
    if command == "smart-run install --prune":  # it judges what it can
        assert done.exit_code == 0
        assert "the plans of tensorrt were not judged and stay: this device cannot run tensorrt:" in done.stderr
        return
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "libcuda.so.1" in done.stderr
