"""The README's commands and example, run as a reader would, on a network small enough for a test."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from export.command import smart_export

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The commands of the section "Commands", made short: two epochs of a narrow network on few images.

    Narrow networks lose more in int8.
    """
    section = README.split("## Commands")[1]
    first = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)[0]
    few = "--epochs 2 --model-arg width=8 --train-images 400 --test-images 100"
    shorter = (re.sub(r"--epochs \d+", few, line) for line in first.splitlines())
    shorter = (re.sub(r"--examples \d+", "--examples 4", line) for line in shorter)
    shorter = (re.sub(r"^smart-bench (?!--compare)", "smart-bench --blocks 8 ", line) for line in shorter)
    return [line.replace("--precision int8", "--precision int8 --max-drop 10") for line in shorter]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    digit = np.rint(load_digits().images[7] * (255 / 16)).astype(np.uint8)
    Image.fromarray(digit).save(folder / "picture.png")
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ["PATH"]}
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_every_command_of_the_readme_runs_and_the_example_prints_what_it_says(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    listed = commands()
    assert {line.split()[0] for line in listed} == {
        "smart-train",
        "smart-eval",
        "smart-export",
        "smart-run",
        "smart-bench",
        "smart-devices",
    }
    started = set()
    for command in listed:
        program, *arguments = shlex.split(command)
        # Each is started as it is installed; an export once more is forked, which leaves out seconds of imports.
        again = program == "smart-export" and program in started
        done = smart_export(*arguments) if again else run(command, workplace)
        started.add(program)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (workplace / "bench.png").stat().st_size > 10_000
    example = re.findall(r"```python\n(.*?)```\n```\n(.*?)```", README, flags=re.DOTALL)[0]
    code = example[0].replace("demo-out/bundle", "bundle")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=workplace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == example[1]


def test_the_tables_say_what_the_results_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
