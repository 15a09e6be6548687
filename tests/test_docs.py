"""The documents name what exists."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from smart_devices import load_profile
from smart_devices.cli import main as devices
from smart_export.cli import main as export
from smart_runtime.bench.cli import main as bench
from smart_runtime.cli import main as run

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/reliability.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[a-z0-9_/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_reliability_names_exists(file: str, test: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    assert not test or test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_reliability_names_tests() -> None:
    assert len(NAMED) > 30


JETSON = (ROOT / "docs/jetson.md").read_text("utf-8")
GPU = (ROOT / "docs/gpu.md").read_text("utf-8")
PAGES = JETSON + GPU
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGES, re.DOTALL) + re.findall(r"`(smart-[^`.]+ [^`]+)`", PAGES)
COMMANDS = sorted(
    {line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("smart-")}
)
GROUPS: dict[str, click.Command] = {
    "smart-devices": devices,
    "smart-export": export,
    "smart-run": run,
    "smart-bench": bench,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_ours_for_a_gpu_is_one_that_exists(command: str) -> None:
    """Read as the command line reads it; `tests/trt/test_gpu_page.py` runs those that need no checkpoint."""
    name, *words = shlex.split(command.partition(" > ")[0])
    found = GROUPS[name]
    if isinstance(found, click.Group):
        found = found.commands[words.pop(0) if words[0] in found.commands else "build"]
    found.make_parser(click.Context(found)).parse_args(words)  # an option that there is not raises


def test_the_jetpack_table_says_what_the_profiles_say() -> None:
    table = re.search(r"\| JetPack \| boards.*?\n\n", JETSON, re.DOTALL)
    assert table is not None
    for line in table[0].strip().splitlines()[2:]:
        versions, boards, python, cuda, tensorrt, opset, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        board = {"Xavier, Orin": "jetson-agx-xavier", "Thor": "jetson-thor"}.get(boards, "jetson-orin")
        named = re.findall(r"\d+\.\d+", versions)[0]
        (row,) = [row for row in load_profile(board).jetpack if named in row.versions]
        assert (row.python, row.cuda) == (python, cuda)
        assert row.tensorrt is not None
        assert row.tensorrt.startswith(tensorrt)
        assert str(row.onnx_opset) == opset or (row.onnx_opset is None and opset == "20 or more")


TEXTS = {
    path: re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    for path in (*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *ROOT.glob("docs/*.md"))
}


def test_every_link_within_the_repository_leads_to_a_file_and_its_heading() -> None:
    headings = {
        path: {
            re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        for path, text in TEXTS.items()
    }
    for path, text in TEXTS.items():
        for file, heading in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", text):
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), f"{path.name}: {file}"
            assert not heading or heading in headings[target], f"{path.name}: {file}#{heading}"
